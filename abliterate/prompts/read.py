"""Load prompt sets: bundled sets, files (.txt, .jsonl, .csv, .parquet) and Hub data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import cast

from abliterate.errors import InputError
from abliterate.prompts.dataset import PREFIX, source_of
from abliterate.prompts.languages.recognition import language_of
from abliterate.prompts.lines import json_rows, txt_rows
from abliterate.prompts.promptset import SPLITS, Prompt, PromptSet, Split, normalised
from abliterate.prompts.row import TEXT_COLUMNS, Row
from abliterate.prompts.split import FEWEST, with_splits
from abliterate.prompts.tables import csv_rows, parquet_rows

_INSTALLED = Path(__file__).parent / "bundled"
BUNDLED = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "prompts"

# The twin of each bundled set: prompts of the same form, with nothing that a model should withhold.
TWINS = {"harmful": "harmless", "censorship": "censorship-control", "borderline-unsafe": "borderline"}


def bundled_names() -> list[str]:
    """Names of the bundled sets."""
    return sorted(path.stem for path in BUNDLED.glob("*.jsonl"))


def load_set(source: str) -> PromptSet:
    """Load a prompt set and give every prompt a split.

    ``source`` is a bundled set's name, a file, or ``hf:DATASET[:CONFIG]:SPLIT:COLUMN``. Blank lines, blank texts and
    repeated texts are dropped. Raises InputError naming the file and the line or row, also for a row without a text.
    """
    group = _read(source)
    return replace(group, prompts=with_splits(group.prompts, source))


def load_asked(source: str) -> PromptSet:
    """Load a prompt set that is only asked: like ``load_set``, but a set without splits may be too small to be split.

    Raises InputError as ``load_set`` does.
    """
    group = _read(source)
    if len(group) < FEWEST and not group.own_splits:
        return group
    return replace(group, prompts=with_splits(group.prompts, source))


def check_named(source: str) -> None:
    """Raise InputError if the source is neither a bundled set nor an existing file. Reads nothing, and does not contact the Hub."""
    if source.startswith(PREFIX):
        source_of(source)
    else:
        _file_of(source)


def _read(source: str) -> PromptSet:
    """A set with the splits that its file names."""
    name, rows = _rows(source)
    prompts: list[Prompt] = []
    seen: set[str] = set()
    lacking: list[Row] = []
    for row in rows:
        prompt = _prompt(row, name)
        if prompt is None:
            lacking.append(row)
        elif (key := normalised(prompt.text)) and key not in seen:
            seen.add(key)
            prompts.append(prompt)
    if lacking:
        raise _without_text(lacking)
    if not prompts:
        raise InputError(f"{source}: no prompts in it")
    ids = [p.id for p in prompts]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise InputError(f"{source}: the id {twice!r} belongs to two different prompts; make ids unique")
    return PromptSet(name, tuple(prompts), own_splits=any(p.split for p in prompts))


def _rows(source: str) -> tuple[str, Iterable[Row]]:
    if source.startswith(PREFIX):
        found = source_of(source)
        return found.name, found.rows()
    path = _file_of(source)
    return path.stem, _READERS[path.suffix.lower()](path)


def _file_of(source: str) -> Path:
    """The file of a bundled set, or the given file. Raises InputError if it does not exist or its format is unknown."""
    if source in bundled_names():
        return BUNDLED / f"{source}.jsonl"
    path = Path(source)
    known = path.suffix.lower() in _READERS
    if not _is_file(path):
        if "/" in source or "\\" in source or known:
            raise InputError(f"{source[:200]}: {'a folder, not a file of prompts' if path.is_dir() else 'no such file'}")
        if near := get_close_matches(source, bundled_names(), 1):
            raise InputError(f"no prompt set {source[:100]!r}: did you mean {near[0]}?")
        raise InputError(
            f"no prompt set {source[:100]!r}: neither a file nor one of {', '.join(bundled_names())} nor hf:DATASET:SPLIT:COLUMN"
        )
    if any("\ud800" <= c <= "\udfff" for c in path.stem):  # how Python stands for a byte that is no UTF-8
        raise InputError(f"{path}: the file's name holds half a character (a byte that is no UTF-8); rename the file")
    if not known:
        raise InputError(f"{path}: prompt files end in {', '.join(sorted(_READERS))}")
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long
        return False


_READERS: dict[str, Callable[[Path], Iterable[Row]]] = {".txt": txt_rows, ".jsonl": json_rows, ".csv": csv_rows, ".parquet": parquet_rows}


def _prompt(row: Row, name: str) -> Prompt | None:
    """A row as a prompt; None if its text is null."""
    column = row.column or next((c for c in TEXT_COLUMNS if row.cells.get(c) is not None), TEXT_COLUMNS[0])
    text = row.text(column)
    if text is None:
        if row.cells.keys().isdisjoint({column, *TEXT_COLUMNS}):
            raise InputError(f"{row.where}: no column 'text' (or 'prompt'); it has {', '.join(map(str, row.cells)) or 'none'}")
        return None
    split = row.cells.get("split") or None
    if split is not None and split not in SPLITS:
        raise InputError(f"{row.where}: split {split!r} is not one of {', '.join(SPLITS)}")
    return Prompt(
        id=row.label("id") or f"{name}-{row.number:04d}",
        text=text.strip(),
        lang=row.label("lang") or language_of(text).code,
        category=row.label("category") or "",
        split=cast("Split | None", split),
        pair=row.label("pair"),
        topic=row.label("topic"),
        facts=row.texts("facts"),
        official=row.label("official"),
    )


def _without_text(rows: Sequence[Row]) -> InputError:
    """One error for all rows whose text is null, so that the user can fix them together."""
    column = rows[0].column or next(c for c in TEXT_COLUMNS if c in rows[0].cells)
    others = ", ".join(str(row.number) for row in rows[1:6]) + (", …" if len(rows) > 6 else "")
    more = f", nor in {len(rows) - 1} more row{'s' * (len(rows) > 2)} ({others})" if others else ""
    return InputError(f"{rows[0].where}: no text in the column {column!r}{more}; fill it, or remove the row")
