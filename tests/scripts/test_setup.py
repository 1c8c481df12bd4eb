"""``scripts/setup``: a line a step, and what pip wrote only where it failed. No package is installed here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment whose Python notes how it was called, talks as pip does, and ends with $ENDS."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "called"}\necho out of pip\necho WARNING: about root >&2\nexit $ENDS\n')
    python.chmod(0o755)
    return tmp_path / "venv"


def setup(venv: Path, ends: int) -> tuple[int, list[str]]:
    environment = {**os.environ, "ABLITERATE_VENV": str(venv), "ENDS": str(ends)}
    done = subprocess.run(["bash", str(ROOT / "scripts" / "setup")], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def test_each_step_is_a_line_and_pip_is_not_heard(venv: Path) -> None:
    code, told = setup(venv, 0)
    assert code == 0 and len(told) == 2 and all(line.startswith("setup: installing") for line in told)
    assert (venv.parent / "called").read_text().count("install") == 2
    assert setup(venv, 0) == (0, [])


def test_a_step_that_fails_shows_what_pip_wrote_and_is_done_again(venv: Path) -> None:
    code, told = setup(venv, 3)
    assert code == 1 and told[1:3] == ["out of pip", "WARNING: about root"] and told[3].startswith("setup: failed: ")
    assert len(told) == 4
    assert len(setup(venv, 0)[1]) == 2
