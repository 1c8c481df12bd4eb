"""Which files of a folder belong to its model (a table, ``files.toml``), and whether they are genuine."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

from abliterate.errors import InputError

_IMPORT = re.compile(r"^\s*(?:from|import)\s.*$", re.MULTILINE)
_LOOKED_AT = 64  # bytes; a file that is not genuine can be recognised by its beginning
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGE = (b"<!doctype html", b"<html")
_NEVER_EMPTY = (".json", ".safetensors", ".model", ".tiktoken")


def files_of(folder: Path) -> list[Path]:
    """The files that belong to a model besides its weights, index and card, relative to its folder."""
    code = _code(folder)
    return [name for name in everything(folder) if name in code or any(_fits(name, pattern) for pattern in _belonging())]


def everything(folder: Path) -> list[Path]:
    """Every file of a folder, relative to it, except hidden files and those of which an edited checkpoint gets new ones."""
    replaced = _table()["replaced"]["names"]
    found = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [name for name in found if not any(part.startswith(".") for part in name.parts) and str(name) not in replaced]


def fetched(weights: bool) -> tuple[list[str], list[str]]:
    """Patterns of files to fetch from the Hub, and of files to leave out; without ``weights``, no shards are fetched."""
    licences = _table()["belongs"]["licences"]
    cases = [pattern for name in licences for pattern in (name, name.upper(), name.title())]  # the Hub's patterns are case-sensitive
    wanted = [*_belonging(), *cases, *_table()["fetched"]["more"]]
    return [pattern for pattern in wanted if weights or pattern != "*.safetensors"], list(_table()["fetched"]["never"])


def check_genuine(folder: Path) -> None:
    """Raise InputError if a file of the model is not genuine: a git-lfs pointer, a web page, or empty."""
    for name in files_of(folder):
        if (instead := in_truth(folder / name)) is not None:
            raise InputError(f"{folder / name}: {instead}")


def in_truth(path: Path) -> str | None:
    """What a file is instead of what its name says, and what to do about it; None if its beginning looks genuine."""
    try:
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT)
    except OSError:  # the error is reported when the file is read
        return None
    if start.startswith(_POINTER):
        return "a git-lfs pointer, not the file itself; run `git lfs pull` in its folder, or download it again"
    if start.lstrip().lower().startswith(_PAGE) and path.suffix in _NEVER_EMPTY:
        return "a web page saved under this name, not the file itself; download it again"
    return "empty; download it again" if not start and path.suffix in _NEVER_EMPTY else None


def _fits(name: PurePath, pattern: str) -> bool:
    parts = pattern.split("/")
    pairs = zip(name.parts, parts, strict=False)
    return len(parts) == len(name.parts) and all(fnmatchcase(part.lower(), wanted) for part, wanted in pairs)


def _code(folder: Path) -> set[Path]:
    """The Python files that the folder's configs name, and the files of the folder that they import."""
    there = {path.stem: path for path in folder.glob("*.py")}
    coming = {name for file in sorted(folder.glob("*.json")) if _names_code(file.name) for name in _named(file)} & there.keys()
    found: set[str] = set()
    while coming:
        found |= coming
        lines = [line for name in coming for line in _IMPORT.findall(there[name].read_text(encoding="utf-8", errors="replace"))]
        coming = {word for line in lines for word in re.findall(r"\w+", line)} & there.keys() - found
    return {Path(there[name].name) for name in found}


def _names_code(name: str) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in _table()["code"]["configs"])


def _named(config: Path) -> Iterator[str]:
    """The modules in ``auto_map`` of a config; none if it can't be read."""
    try:
        content = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    for name in _texts(content.get("auto_map") if isinstance(content, dict) else None):
        if "--" not in name:  # with it, the code is in another repository
            yield name.partition(".")[0]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


@cache
def _belonging() -> tuple[str, ...]:
    return tuple(pattern for patterns in _table()["belongs"].values() for pattern in patterns)


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(files("abliterate.model").joinpath("files.toml").read_text(encoding="utf-8"))
