"""Where results may go: nothing that is there is overwritten."""

from __future__ import annotations

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
