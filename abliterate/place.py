"""Where results may go, and how: nothing that is there is overwritten, and a file is whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from abliterate.errors import InputError


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


def write_whole(content: bytes, path: Path) -> None:
    """Write a file that is whole or absent, and stays so when the machine goes down."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # what a killed process left, or a link that a stranger's folder came with
    with partial.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def no_link(path: str, flags: int) -> int:
    """An opener (see ``open``) for a file that is written to where it stands. Raises InputError for a link, which would lead elsewhere."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise InputError(f"{path}: is a link, and what is written there would land in another file; remove it") from None
        raise
