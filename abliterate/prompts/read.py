"""Where prompt sets come from: bundled sets, files (.txt, .jsonl, .csv, .parquet) and Hub data sets."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from abliterate.errors import InputError
from abliterate.prompts.promptset import SPLITS, Prompt, PromptSet, Split, language_of, normalised
from abliterate.prompts.split import FEWEST, with_splits

TEXT_COLUMNS = ("text", "prompt")
_INSTALLED = Path(__file__).parent / "bundled"
BUNDLED = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "prompts"

Row = Mapping[str, Any]
# The bundled set that holds each bundled set's twins: the same form, but nothing in it that a model should withhold.
TWINS = {"harmful": "harmless", "censorship": "censorship-control", "borderline-unsafe": "borderline"}


def bundled_names() -> list[str]:
    """Names of the sets that come with the program."""
    return sorted(path.stem for path in BUNDLED.glob("*.jsonl"))


def load_set(source: str) -> PromptSet:
    """Load a prompt set and give every prompt a split.

    ``source`` is a bundled set's name, a file, or ``hf:DATASET[:CONFIG]:SPLIT:COLUMN``. Blank and repeated texts are
    dropped. Raises InputError naming the file and, where there is one, the line.
    """
    return _dealt(*_read(source), source)


def load_asked(source: str) -> PromptSet:
    """Load a prompt set that is only asked: as ``load_set`` does, but one that names no splits may be too small to be split.

    Raises InputError as ``load_set`` does.
    """
    name, prompts = _read(source)
    if len(prompts) < FEWEST and not any(p.split for p in prompts):
        return PromptSet(name, tuple(prompts), own_splits=False)
    return _dealt(name, prompts, source)


def _dealt(name: str, prompts: list[Prompt], source: str) -> PromptSet:
    return PromptSet(name, with_splits(prompts, source), own_splits=any(p.split for p in prompts))


def check_named(source: str) -> None:
    """Raise InputError where no set is called so and no file is there; nothing is read, and of a data set on the Hub nothing is asked."""
    if source.startswith("hf:"):
        _hub_parts(source)
    else:
        _file_of(source)


def _read(source: str) -> tuple[str, list[Prompt]]:
    """A set's name and its prompts, as the file has their splits."""
    name, rows = _rows(source)
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for number, where, row in rows:
        prompt = _prompt(row, name, number, where)
        key = normalised(prompt.text)
        if key and key not in seen:
            seen.add(key)
            prompts.append(prompt)
    if not prompts:
        raise InputError(f"{source}: no prompts in it")
    ids = [p.id for p in prompts]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise InputError(f"{source}: the id {twice!r} stands at two different prompts; make ids unique")
    return name, prompts


def _rows(source: str) -> tuple[str, Iterable[tuple[int, str, Row]]]:
    if source.startswith("hf:"):
        return _hub_rows(source)
    path = _file_of(source)
    return path.stem, _READERS[path.suffix.lower()](path)


def _file_of(source: str) -> Path:
    """The file of a bundled set's name, or the one that is given. Raises InputError where there is none that can be read."""
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
    if not known:
        raise InputError(f"{path}: prompt files end in {', '.join(sorted(_READERS))}")
    return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long to be one
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _txt(path: Path) -> Iterable[tuple[int, str, Row]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        yield number, f"{path}:{number}", {"text": line}


def _jsonl(path: Path) -> Iterable[tuple[int, str, Row]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too deep or too large a number"
            raise InputError(f"{path}:{number}: not JSON ({why})") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: a line must be one JSON object")
        yield number, f"{path}:{number}", row


def _csv(path: Path) -> Iterable[tuple[int, str, Row]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    for number, row in enumerate(reader, 1):
        yield number, f"{path}: row {number}", {k: v or "" for k, v in row.items() if k is not None}


def _parquet(path: Path) -> Iterable[tuple[int, str, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from None
    for number, row in enumerate(rows, 1):
        yield number, f"{path}: row {number}", {k: v if v is not None else "" for k, v in row.items()}


_READERS = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def _hub_rows(source: str) -> tuple[str, Iterable[tuple[int, str, Row]]]:
    parts = _hub_parts(source)
    dataset, config, (split, column) = parts[0], parts[1] if len(parts) == 4 else None, parts[-2:]
    import datasets

    try:
        table = datasets.load_dataset(dataset, config, split=split, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds; each means that the data set can't be had
        raise InputError(f"{source}: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from None
    if column not in table.column_names:
        raise InputError(f"{source}: no column {column!r}; it has {', '.join(table.column_names)}")
    rows = ((i, f"{source}: row {i}", {"text": text}) for i, text in enumerate(table[column], 1))
    return dataset.rstrip("/").split("/")[-1], rows


def _hub_parts(source: str) -> list[str]:
    """Data set, configuration (where one is named), split and column. Raises InputError where they are not that many."""
    parts = source.removeprefix("hf:").split(":")
    if len(parts) not in (3, 4) or not all(parts):
        raise InputError(f"{source}: write hf:DATASET:SPLIT:COLUMN or hf:DATASET:CONFIG:SPLIT:COLUMN")
    return parts


def _prompt(row: Row, name: str, number: int, where: str) -> Prompt:
    column = next((c for c in TEXT_COLUMNS if c in row), None)
    if column is None:
        raise InputError(f"{where}: no column 'text' (or 'prompt'); it has {', '.join(map(str, row)) or 'none'}")
    text = row[column]
    if not isinstance(text, str):
        raise InputError(f"{where}: {column!r} must be a text, not {type(text).__name__}")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise InputError(f"{where}: {column!r} holds half a character (a lone surrogate); save the text as valid Unicode")
    split = row.get("split") or None
    if split is not None and split not in SPLITS:
        raise InputError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
    return Prompt(
        id=_optional(row, "id") or f"{name}-{number:04d}",
        text=text.strip(),
        lang=str(row.get("lang") or language_of(text)),
        category=str(row.get("category") or ""),
        split=cast("Split | None", split),
        pair=_optional(row, "pair"),
        topic=_optional(row, "topic"),
        facts=_facts(row.get("facts"), where),
        official=_optional(row, "official"),
    )


def _optional(row: Row, key: str) -> str | None:
    return str(row[key]) if row.get(key) not in (None, "") else None


def _facts(given: Any, where: str) -> tuple[str, ...]:
    """A list of texts, or one text with bars between the facts."""
    facts = given.split("|") if isinstance(given, str) else given if given is not None else []
    if not isinstance(facts, list | tuple) or not all(isinstance(fact, str) for fact in facts):
        raise InputError(f"{where}: 'facts' must be a list of texts (or one text, facts apart by |)")
    return tuple(fact.strip() for fact in facts if fact.strip())
