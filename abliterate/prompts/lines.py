"""Input files read line by line: text, and JSON objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from abliterate.errors import InputError
from abliterate.files import Json
from abliterate.prompts.row import Row, check_names

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def text_of(path: Path) -> str:
    """A file's text with ``\\n`` line ends and without a byte order mark. Raises InputError naming the line that is not UTF-8."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        other = " but UTF-16" if data.startswith(_UTF16) else ""
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 at byte {error.start}{other}; save it as UTF-8") from None
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise InputError(f"{path}:{line}: holds a null character: UTF-16, or no text at all; save it as UTF-8")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def txt_rows(path: Path) -> Iterator[Row]:
    """One row per line, in the column ``text``."""
    for number, line in enumerate(text_of(path).split("\n"), 1):
        yield Row(number, f"{path}:{number}", {"text": line})


def json_rows(path: Path) -> Iterator[Row]:
    """One row per line that is not blank. Raises InputError naming a line that is not a JSON object."""
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            yield Row(number, where, _object(line, where))


def _object(line: str, where: str) -> Json:
    def keyed(pairs: list[tuple[str, Any]]) -> Json:
        found = dict(pairs)
        if len(found) < len(pairs):
            check_names([name for name, _ in pairs], where)
        return found

    try:
        row = json.loads(line, object_pairs_hook=keyed)
    except (ValueError, RecursionError) as error:
        why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too deep or too large a number"
        raise InputError(f"{where}: not JSON ({why})") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: a line must be an object: {{…}}")
    return row
