"""A new folder is whole or not there; side files are copied byte for byte."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from abliterate.checkpoint.write import copy_side_files, left_behind, new_folder
from abliterate.errors import InputError
from abliterate.files import check_destination
from abliterate.model.index import SINGLE


def test_a_block_that_ends_well_gives_the_folder_its_name(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out", 1) as partial:
        assert not (tmp_path / "out").exists()
        (partial / "a").write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "x"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), OSError(errno.EDQUOT, "full")])
def test_a_disk_that_fills_up_on_the_way_is_called_so_and_leaves_nothing(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(InputError, match="no space left"), new_folder(tmp_path / "out", 1) as partial:
        (partial / "a").write_text("x")
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), InputError("x")])
def test_a_block_that_ends_ill_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), new_folder(tmp_path / "out", 1) as partial:
        (partial / "a").write_text("x")
        raise error
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_destination(tmp_path / "out", tmp_path / "model")
    with new_folder(tmp_path / "out", 1) as partial:
        (partial / "a").write_text("x")
    assert (tmp_path / "out" / "a").read_text() == "x"


def test_a_link_to_an_empty_folder_is_filled_or_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    try:
        check_destination(tmp_path / "out", tmp_path / "model")
    except InputError:
        return
    with new_folder(tmp_path / "out", 1) as partial:
        (partial / "a").write_text("x")
    assert (tmp_path / "out" / "a").read_text() == "x"


def test_the_current_folder_is_filled_or_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    try:
        check_destination(Path(), tmp_path / "model")
    except InputError:
        return
    with new_folder(Path(), 1) as partial:
        (partial / "a").write_text("x")
    assert (tmp_path / "here" / "a").read_text() == "x"


def test_a_file_in_the_way_of_the_parent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file"):
        check_destination(tmp_path / "file" / "out", tmp_path / "model")
        with new_folder(tmp_path / "file" / "out", 1):
            pass


def test_missing_parents_are_made(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "b" / "out", 1):
        pass
    assert (tmp_path / "a" / "b" / "out").is_dir()


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    stale = tmp_path / ".out.partial-abc"
    stale.mkdir()
    (stale / SINGLE).write_bytes(b"half")
    with new_folder(tmp_path / "out", 1):
        assert not stale.exists()


@pytest.mark.parametrize(
    ("owner", "kept"), [(os.getppid(), True), (os.getpid(), False), (2**22 + 1, False)], ids=["another", "this", "none"]
)
def test_the_sweep_spares_what_another_running_process_is_writing(tmp_path: Path, owner: int, kept: bool) -> None:
    theirs = tmp_path / f".out.partial-{owner}-abc"
    theirs.mkdir()
    with new_folder(tmp_path / "out", 1):
        assert theirs.exists() == kept


@pytest.mark.parametrize("other", [".other.partial-abc", ".outer.partial-abc", "out.partial-abc"])
def test_the_sweep_spares_other_folders(tmp_path: Path, other: str) -> None:
    (tmp_path / other).mkdir()
    with new_folder(tmp_path / "out", 1):
        assert (tmp_path / other).exists()


@pytest.mark.parametrize("name", ["model[v2]", "*", "what?"])
def test_a_name_with_pattern_characters_sweeps_its_own_and_no_other(tmp_path: Path, name: str) -> None:
    own, other = tmp_path / f".{name}.partial-abc", tmp_path / ".modelv.partial-abc"
    own.mkdir()
    other.mkdir()
    with new_folder(tmp_path / name, 1):
        assert not own.exists()
        assert other.exists()


def test_too_little_space_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="make room"), new_folder(tmp_path / "out", 2):
        pytest.fail("the block ran")
    assert not list(tmp_path.iterdir())


def test_another_write_error_is_not_called_a_full_disk(tmp_path: Path) -> None:
    def fail() -> NoReturn:
        raise PermissionError(errno.EACCES, "denied")

    with pytest.raises(PermissionError), new_folder(tmp_path / "out", 1):
        fail()
    assert not list(tmp_path.iterdir())


def test_side_files_are_copied_but_old_weights_and_cards_are_not(tmp_path: Path) -> None:
    source, out = tmp_path / "model", tmp_path / "out"
    kept = ["config.json", "LICENSE", "tokenizer.json", "additional_chat_templates/tool.jinja", "chat_template.jinja"]
    left = ["README.md", "abliteration.json", "abliteration.plan", "model.safetensors.index.json", "pytorch_model.bin"]
    left += [
        "x.gguf",
        "x.safetensors",
        ".git/config",
        ".hidden",
        "sub/.cache/x",
        "sub/extra.txt",
        "optimizer.pt",
        "checkpoint-5/config.json",
    ]
    for name in [*kept, *left]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    out.mkdir()
    assert sorted(copy_side_files(source, out)) == sorted(kept)
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == set(kept)
    assert all((out / name).read_text() == name for name in kept)


def test_what_is_left_behind_is_counted_and_named_as_far_as_a_line_has_room(tmp_path: Path) -> None:
    for name in ("config.json", "README.md", SINGLE, ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert left_behind(tmp_path, [SINGLE]) == ""
    (tmp_path / "backup.zip").write_text("")
    assert left_behind(tmp_path, [SINGLE]) == "1 file (backup.zip)"
    for name in ("a", "b"):
        (tmp_path / "checkpoint-5").mkdir(exist_ok=True)
        (tmp_path / "checkpoint-5" / name).write_text("")
    assert left_behind(tmp_path, []) == f"4 files (backup.zip, checkpoint-5/, {SINGLE})"
    for number in range(9):
        (tmp_path / f"log{number}").write_text("")
    assert left_behind(tmp_path, [SINGLE]).endswith("log5, and 3 more)")


def test_side_files_behind_links_are_copied_as_files(tmp_path: Path) -> None:
    source, out = tmp_path / "model", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (tmp_path / "blob").write_text("{}")
    (source / "config.json").symlink_to(tmp_path / "blob")
    copy_side_files(source, out)
    assert not (out / "config.json").is_symlink()
    assert (out / "config.json").read_text() == "{}"


@pytest.mark.parametrize("out", ["model", "model/out", "model/a/b", "link/out", "model/../model/out"])
def test_a_destination_in_the_models_folder_is_refused(tiny: Callable[..., Path], tmp_path: Path, out: str) -> None:
    tiny().rename(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    with pytest.raises(InputError, match=r"outside it|not empty"):
        check_destination(tmp_path / out, tmp_path / "model")


def test_a_destination_around_the_models_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out" / "model").mkdir(parents=True)
    with pytest.raises(InputError, match="not empty"):
        check_destination(tmp_path / "out", tmp_path / "out" / "model")
    with pytest.raises(InputError, match="contains the model's folder"):
        check_destination(tmp_path / "absent", tmp_path / "absent" / "model")


def test_a_destination_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".hidden").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("out", "file"):
        with pytest.raises(InputError, match="nothing is overwritten"):
            check_destination(tmp_path / name, tmp_path / "model")
