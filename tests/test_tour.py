"""The tour of the code (docs/tour.md) against the ways that ``scripts/hops`` measures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "docs" / "tour.md"
STEP = re.compile(r"^(\d+)\. \[`([\w/]+\.py)`\]\(\.\./abliterate/([\w/]+\.py)\) `([\w.]+)`: \S", re.MULTILINE)
WAYS = {"prompt": "## A prompt, ", "direction": "## A direction, "}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The hops of both ways. In a process of its own, because the tests' own checks of shapes are functions too."""
    file = tmp_path_factory.mktemp("hops") / "hops.json"
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "hops.py"), "--json", str(file)], env=path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def section(way: str) -> str:
    return next(part for part in re.split(r"^(?=## )", TOUR.read_text(encoding="utf-8"), flags=re.MULTILINE) if part.startswith(WAYS[way]))


@pytest.mark.parametrize("way", WAYS)
def test_the_tour_names_every_hop_in_its_order_and_no_other(way: str, measured: dict[str, list[str]]) -> None:
    steps = STEP.findall(section(way))
    assert [shown for _, shown, _, _ in steps] == [linked for _, _, linked, _ in steps]
    assert [f"{file}: {function}" for _, file, _, function in steps] == measured[way]
    assert [int(number) for number, *_ in steps] == list(range(1, len(steps) + 1))


@pytest.mark.parametrize("way", WAYS)
def test_the_tour_tells_the_number_of_hops(way: str, measured: dict[str, list[str]]) -> None:
    assert section(way).partition("\n")[0].endswith(f": {len(measured[way])} hops")
