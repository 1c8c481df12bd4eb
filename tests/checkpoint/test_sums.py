"""SHA256SUMS: what sha256sum itself makes of it, and what verify does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.checkpoint.sums import SUMS, check_sums, sha256_of, to_hash, write_sums
from abliterate.checkpoint.verify import verify
from abliterate.errors import CheckError
from abliterate.model.edit import edit_from_direction
from abliterate.model.folder import open_folder

NAMES = ("a", "deep/er/b", "with space", "ünïcode 字", "back\\slash", "line\nbreak", "-dash", "*star")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 1000)
    (tmp_path / ".hidden").write_text("not published")
    return tmp_path


def later(path: Path) -> None:
    """Changed after what was written last, also where the clock is coarse."""
    stamp = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(stamp, stamp))


def test_sha256sum_finds_every_file_as_written(folder: Path) -> None:
    write_sums(folder)
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": OK") == len(NAMES), done.stderr
    assert check_sums(folder) == len(NAMES)


def test_it_is_what_sha256sum_would_write(folder: Path) -> None:
    write_sums(folder)
    theirs = subprocess.run(["sha256sum", "--", *sorted(NAMES)], cwd=folder, capture_output=True, check=True).stdout.decode()
    assert sorted((folder / SUMS).read_text(encoding="utf-8").splitlines()) == sorted(theirs.splitlines())


def test_only_what_is_newer_is_hashed_again(folder: Path) -> None:
    heard: list[int] = []
    total = to_hash(folder)
    write_sums(folder, heard.append)
    assert sum(heard) == total == sum((folder / name).stat().st_size for name in NAMES)
    for name in NAMES:
        os.utime(folder / name, ns=(0, 0))
    (folder / "a").write_bytes(b"changed")
    later(folder / "a")
    (folder / "-dash").unlink()
    heard.clear()
    write_sums(folder, heard.append)
    assert sum(heard) == len(b"changed") and check_sums(folder) == len(NAMES) - 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "a").write_bytes(b"x"), "a: its bytes"),
        (lambda f: (f / "a").unlink(), "a: is missing"),
        (lambda f: (f / "new").write_bytes(b"x"), "new: is not in SHA256SUMS"),
        (lambda f: (f / SUMS).write_text("nonsense\n"), "line 1"),
    ],
    ids=["changed", "gone", "added", "nonsense"],
)
def test_a_difference_is_named(folder: Path, damage: Callable[[Path], object], says: str) -> None:
    write_sums(folder)
    damage(folder)
    with pytest.raises(CheckError, match=says):
        check_sums(folder)


def test_what_may_differ_may_and_where_nothing_is_written_nothing_is_compared(folder: Path) -> None:
    assert check_sums(folder) == 0
    write_sums(folder)
    (folder / "a").write_bytes(b"x")
    (folder / "new").write_bytes(b"x")
    assert check_sums(folder, but=("a", "new")) == len(NAMES) - 1


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_of(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_verify_sees_a_changed_file_that_no_proof_covers_but_lets_people_write_the_card(
    tiny: Callable[..., Path], unit_direction: Callable[..., torch.Tensor], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    edit_checkpoint(open_folder(tiny()), edit_from_direction(unit_direction(32), 4), out, "base", lambda proof: "card\n")
    write_sums(out)
    (out / "README.md").write_text("a better card\n")
    (out / "LICENSE").write_text("added\n")
    assert verify(open_folder(out), None)[0] > 0
    (out / "tokenizer_config.json").write_text((out / "tokenizer_config.json").read_text() + " ")
    with pytest.raises(CheckError, match=r"tokenizer_config\.json: its bytes"):
        verify(open_folder(out), None)
