"""Models built into the cache: once, whole or not at all, by one of several processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError

from abliterate.errors import InputError
from abliterate.model.built import built

KILLED = """
import os, signal
from abliterate.model.built import built
def build(folder):
    (folder / "config.json").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
built("model-1", build)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ABLITERATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_a_model_is_built_once(cache: Path) -> None:
    assert built("model-1", write) == cache / "model-1"
    assert built("model-1", lambda folder: pytest.fail("built again")) == cache / "model-1"
    assert (cache / "model-1" / "config.json").read_text() == "{}"


def test_a_build_that_is_killed_is_not_taken_for_whole_and_the_next_takes_its_files_away(cache: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, check=False)
    assert done.returncode == -signal.SIGKILL
    [left] = folders(cache)
    assert left != "model-1"
    assert (built("model-1", write) / "config.json").read_text() == "{}"
    assert folders(cache) == ["model-1"]


def test_what_is_built_under_another_name_is_left_alone(cache: Path) -> None:
    (cache / ".model-2-abc").mkdir(parents=True)
    built("model-1", write)
    assert folders(cache) == [".model-2-abc", "model-1"]


def test_of_two_that_want_the_same_one_builds_and_the_other_says_that_it_waits(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, waits = threading.Event(), threading.Event()
    builds: list[str] = []
    monkeypatch.setattr("abliterate.model.built.say", lambda line: waits.set() if "waiting for it" in line else None)

    def slowly(folder: Path) -> None:
        builds.append("first")
        begun.set()
        assert waits.wait(60)
        write(folder)

    def other(folder: Path) -> None:
        builds.append("second")
        write(folder)

    first, second = (threading.Thread(target=built, args=("model-1", build)) for build in (slowly, other))
    first.start()
    assert begun.wait(60)
    second.start()
    first.join()
    second.join()
    assert builds == ["first"] and folders(cache) == ["model-1"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SafetensorError("I/O error: No space left on device")])
def test_a_disk_that_runs_full_is_one_line_and_nothing_is_left(cache: Path, error: Exception) -> None:
    def build(folder: Path) -> None:
        write(folder)
        raise error

    with pytest.raises(InputError, match=r"model-1: can't be built \(.*No space left on device\); ABLITERATE_CACHE can name") as raised:
        built("model-1", build)
    assert "\n" not in str(raised.value) and folders(cache) == []


def test_a_disk_that_is_too_small_is_told_before_anything_is_built(cache: Path) -> None:
    with pytest.raises(InputError, match=r"building model-1 takes up to 1000000000\.0 GB of disk, [\d.]+ GB are free; make room"):
        built("model-1", lambda folder: pytest.fail("built"), needed=10**18)
    assert folders(cache) == []


def test_a_cache_that_can_not_be_made_is_one_line(cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(InputError, match=r"cache: can't be made \(.*\); set ABLITERATE_CACHE to a folder"):
        built("model-1", write)
