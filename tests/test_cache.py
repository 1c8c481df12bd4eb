"""Only the user can read the cache, and content that others could have written is not trusted."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from abliterate.checkpoint.selfcheck import self_check
from abliterate.errors import InputError
from abliterate.files import cache_folder
from abliterate.model.folder import open_folder
from abliterate.model.index import open_index
from abliterate.outcomes.judges.memory import Memory

Tiny = Callable[..., Path]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ABLITERATE_CACHE", str(tmp_path / "deep" / "cache"))
    return tmp_path / "deep" / "cache"


@pytest.fixture(autouse=True)
def _open_to_all() -> object:
    """Set the umask that lets everybody write new files."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_new_cache_is_closed_to_others(cache: Path) -> None:
    assert cache_folder() == cache and mode(cache) == 0o700


def test_one_that_was_open_is_closed(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert mode(cache_folder()) == 0o700


def test_a_link_is_no_cache(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    cache.parent.mkdir()
    cache.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"is a link.*ABLITERATE_CACHE"):
        cache_folder()


def test_a_folder_that_many_share_is_no_cache(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o1777)
    with pytest.raises(InputError, match=r"many users may write there.*ABLITERATE_CACHE"):
        cache_folder()
    assert mode(cache) == 0o1777


def test_another_users_folder_is_no_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(cache, 12345, 12345)
    else:  # only root can change a folder's owner, so pretend to be another user
        mine = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(InputError, match=r"belongs to another user.*ABLITERATE_CACHE"):
        cache_folder()


def test_what_judges_said_is_for_nobody_else(cache: Path) -> None:
    Memory(cache_folder() / "judgements.sqlite").keep("a", "m", "1", "refused")
    assert {mode(file) for file in cache.iterdir()} == {0o600}


def test_a_link_in_the_place_of_what_judges_said_is_refused(cache: Path, tmp_path: Path) -> None:
    (cache_folder() / "judgements.sqlite").symlink_to(tmp_path / "not-there")
    with pytest.raises(InputError, match="can't store judges' replies"):
        Memory(cache / "judgements.sqlite").keep("a", "m", "1", "refused")
    assert not (tmp_path / "not-there").exists()


def test_a_self_check_in_a_cache_that_others_write_is_not_believed(tiny: Tiny, cache: Path, tmp_path: Path) -> None:
    model = tiny(dtype=torch.float32)
    made = self_check(open_folder(model), open_index(model))
    [kept] = (cache / "selfchecks").iterdir()
    assert mode(kept) == 0o600 and mode(kept.parent) == 0o700
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "left": 0.5}))
    assert self_check(open_folder(model), open_index(model)).left == 0.5
    cache.chmod(0o1777)
    assert self_check(open_folder(model), open_index(model)) == made
