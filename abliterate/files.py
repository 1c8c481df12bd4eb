"""Files that are whole or absent, the places they may have, and the user's own cache."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs
import psutil

from abliterate.errors import CheckError, InputError

CACHE = "ABLITERATE_CACHE"
OWN_FOLDER, OWN_FILE = 0o700, 0o600  # nobody else reads or writes it
_EVERYBODY_READS = 0o644
_ROOT = 0


def check_new(path: Path, flag: str = "--out") -> None:
    """Raise InputError where something is there already."""
    if path.exists():
        raise InputError(f"{path}: already there; give another {flag} (nothing is overwritten)")


def check_place(path: Path) -> None:
    """Raise InputError where no run folder can be: a file, or a folder with something else in it."""
    if not path.exists() or (path / "run.json").is_file():
        return
    if not path.is_dir() or any(p.name != ".run.json.partial" for p in path.iterdir()):
        raise InputError(f"{path}: not empty and not a run folder; give another --out")


def check_destination(out: Path, source: Path) -> None:
    """Raises InputError where the new folder can't be: it holds something, or lies inside the source (or around it)."""
    if out.is_symlink() or out.resolve() == Path.cwd():
        raise InputError(f"{out}: is a link or the current folder; give a new folder's name")
    above = next((p for p in out.absolute().parents if p.exists()), None)
    if above is not None and not above.is_dir():
        raise InputError(f"{above}: is a file, so {out} can't be made; give another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already there and not empty; give another --out (nothing is overwritten)")
    real, base = out.resolve(), source.resolve()
    if real == base or base in real.parents:
        raise InputError(f"{out}: lies inside the model's folder {source}; give an --out outside it")
    if real in base.parents:
        raise InputError(f"{out}: holds the model's folder {source}; give another --out")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields the name to write under. At the end of the block the file is flushed to the disk and takes its own name; where the block
    fails, nothing stands under either name.

    Everybody may read the file, also where the library that writes it (safetensors) would let only its owner.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # what a killed process left, or a link that a stranger's folder came with
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.chmod(_EVERYBODY_READS)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a hidden folder beside ``path``. At the end of the block everything in it is flushed to the disk and it takes that name;
    where the block fails, nothing stands under either name. What killed processes left of the same folder is removed first."""
    remove_stale(path)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-{os.getpid()}-", dir=path.parent))
    try:
        yield partial
        for inner in sorted(partial.rglob("*")):
            _sync(inner)
        _sync(partial)
        partial.chmod(0o755)
        partial.replace(path)
        try:
            _sync(path.parent)
        except OSError:
            shutil.rmtree(path, ignore_errors=True)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_stale(path: Path) -> None:
    """Remove what killed processes left half-written of a folder; what belongs to a process that runs stays."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        owner = stale.name.rpartition(".partial-")[2].partition("-")[0]
        if not owner.isdigit() or int(owner) == os.getpid() or not psutil.pid_exists(int(owner)):
            shutil.rmtree(stale, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems can't sync a folder
            raise
    finally:
        os.close(descriptor)


def write_whole(content: bytes, path: Path) -> None:
    """Write a file that is whole or absent, and stays so when the machine goes down."""
    with whole_file(path) as partial, partial.open("xb") as file:
        file.write(content)


def write_text(text: str, path: Path) -> None:
    """Write a text file that is whole or absent."""
    write_whole(text.encode("utf-8", "replace"), path)


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write a JSON file that is whole or absent. Raises CheckError for a figure that JSON has no number for."""
    try:
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise CheckError(f"{path}: a figure is not finite; the edited model's outputs are broken") from None
    write_text(text + "\n", path)


def read_json(path: Path) -> dict[str, Any]:
    """Read back what ``write_json`` wrote."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def no_link(path: str, flags: int) -> int:
    """An opener (see ``open``) for a file that is written to where it stands. Raises InputError for a link, which would lead elsewhere."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise InputError(f"{path}: is a link, and what is written there would land in another file; remove it") from None
        raise


def cache_folder() -> Path:
    """$ABLITERATE_CACHE, or the platform's user cache: a folder that nobody but the user writes or reads.

    It is made where it isn't there, and closed to others where it is the user's and open; one of root's will do where only root writes
    to it. Raises InputError for a link, another user's folder, one that many share, or one that can't be made.
    """
    path = Path(os.environ.get(CACHE) or platformdirs.user_cache_path("abliterate"))
    if path.is_symlink():
        raise InputError(f"{path}: the cache is a link, which may come to lead elsewhere; set {CACHE} to the folder itself")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=OWN_FOLDER, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path}: can't be made ({error.strerror or error}); set {CACHE} to a folder that can be written") from None
    own, mode = found.st_uid == os.geteuid(), stat.S_IMODE(found.st_mode)
    if not own and found.st_uid != _ROOT:
        raise InputError(f"{path}: the cache belongs to another user, who could change what is in it; set {CACHE} to a folder of yours")
    if mode & stat.S_ISVTX or (not own and mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise InputError(f"{path}: many users may write there, so it is no place for a cache; set {CACHE} to a folder of yours")
    if own and mode != OWN_FOLDER:
        path.chmod(OWN_FOLDER)
    return path
