"""Models that are built here, once, into the user's cache."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from abliterate.cache import OWN_FILE, cache_folder
from abliterate.errors import InputError, first_line
from abliterate.progress import say


def built(name: str, build: Callable[[Path], None], needed: int = 0) -> Path:
    """The folder ``name`` of the cache. Where it isn't there, ``build`` fills an empty folder, which gets that name when it is whole.

    Of several processes that want it, one builds and the others wait. What a killed one left behind is taken away by the next.
    ``needed`` is how many bytes the build takes on the disk at most. Raises InputError where there are fewer, or it can't be written.
    """
    final = cache_folder() / name
    if _is_whole(final):
        return final
    try:
        with _alone(final):
            if not _is_whole(final):
                _check_room(final, needed)
                _build(final, build)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{final}: can't be built ({first_line(error)}); ABLITERATE_CACHE can name another folder than {final.parent}"
        ) from None
    return final


def _is_whole(final: Path) -> bool:
    return (final / "config.json").is_file()


def _build(final: Path, build: Callable[[Path], None]) -> None:
    for left in final.parent.glob(f".{final.name}-*"):
        shutil.rmtree(left)
    say(f"making the model {final} (once)")
    partial = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        build(partial)
        for file in (path for path in partial.rglob("*") if path.is_file()):
            with file.open("rb") as content:
                os.fsync(content.fileno())  # else the name could outlast the bytes when the machine goes down
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _alone(final: Path) -> Iterator[None]:
    """Waits until no other process builds the same; the system lets go of the lock of a process that ends, however it ends."""
    lock = os.open(final.with_name(f".{final.name}.lock"), os.O_RDWR | os.O_CREAT, OWN_FILE)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process makes the model {final}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _check_room(final: Path, needed: int) -> None:
    free = shutil.disk_usage(final.parent).free
    if free < needed:
        raise InputError(
            f"{final.parent}: building {final.name} takes up to {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free; "
            "make room, or let ABLITERATE_CACHE name another folder"
        )
