"""The measurements of a model in memory, on a tiny one: both ways on the same prompts, and the same replies."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import save_tiny

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bench") / "model", layers=2, says="I won't.")


def here() -> Any:
    """The script as a module, its ways in this process."""
    spec = importlib.util.spec_from_file_location("bench_model", SCRIPTS / "bench_model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_model"] = module
    spec.loader.exec_module(module)
    return module


def test_replies_are_measured_in_processes_of_their_own(tiny_folder: Path, tmp_path: Path) -> None:
    call = ["generate", "--model", str(tiny_folder), "--limit", "3", "--tokens", "4", "--batch-sizes", "2,5", "--repeat", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "bench.py"), *call, "--json", str(tmp_path / "f.json")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["prompts"] == 12
    for way in found["ways"].values():
        assert len(way["cpu"]) == len(way["wall"]) == 2 and way["prompts"] == 12 and way["peak_bytes"] > 10**7
    assert set(found["differ"].values()) == {0}
    assert "of 12" in done.stdout and "× transformers" in done.stdout


def test_collecting_is_measured_in_both_orders(tiny_folder: Path) -> None:
    bench = here()

    class InProcess:
        def __init__(self, settings: dict[str, Any]) -> None:
            self.run = bench.Asked(**settings).run

        def close(self) -> None:
            pass

    settings = {"model": str(tiny_folder), "limit": 4, "tokens": 0, "positions": 3, "threads": 1}
    found = bench.measured("collect", settings, [2, 4], 3, InProcess)
    assert list(found["ways"]) == [bench.OWN, bench.FILE, bench.SORTED]
    assert {len(way["cpu"]) for way in found["ways"].values()} == {3}
    assert {target["beside"] for target in found["targets"]} == {bench.FILE, bench.SORTED} and "differ" not in found


def test_a_whole_run_is_measured_beside_plain_transformers(tiny_folder: Path, tmp_path: Path) -> None:
    call = ["run", "--model", str(tiny_folder), "--limit", "6", "--tokens", "3", "--candidates", "2", "--repeat", "1", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "bench.py"), *call, "--work", str(tmp_path), "--json", str(tmp_path / "f.json")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "f.json").read_text())
    assert set(found["ways"]) == {"abliterate run", "plain transformers"}
    for way in found["ways"].values():
        ((wall, cpu, peak),) = way["turns"]
        assert wall > 0 and cpu > 0 and peak > 10**8 and len(way["withheld"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]
