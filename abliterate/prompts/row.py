"""A row of what people give: its cells, and where it stands; whether a cell holds a text is decided here, for every format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from abliterate.errors import InputError

TEXT_COLUMNS = ("text", "prompt")
_KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
_MESSAGE = frozenset({"content", "value"})  # the keys under which messages of a conversation hold their words


@dataclass(frozen=True)
class Row:
    """``where`` is for messages: the file or data set, and the line or row. None as a cell: it is null, or an empty cell of a table.

    ``column`` holds the text where the source names it.
    """

    number: int
    where: str
    cells: Mapping[str, Any]
    column: str | None = None

    def text(self, column: str) -> str | None:
        """The text of a column; None where it is null or there is none. Raises InputError where it is anything else."""
        value = self.cells.get(column)
        return None if value is None else _text(value, column, self.where)

    def label(self, column: str) -> str | None:
        """A short text or a number, as text; None where it is null, empty or not there. Raises InputError where it is anything else."""
        value = self.cells.get(column)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return str(value)
        return self.text(column) or None

    def texts(self, column: str) -> tuple[str, ...]:
        """A list of texts, or one text with bars between them; blank ones left out. Raises InputError where it is anything else."""
        given = self.cells.get(column)
        parts = given.split("|") if isinstance(given, str) else [] if given is None else given
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise InputError(f"{self.where}: {column!r} must be a list of texts (or one text, {column} apart by |)")
        return tuple(_text(part, column, self.where).strip() for part in parts if part.strip())


def _text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {column!r} must be a text, not {kind(value)}")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise InputError(f"{where}: {column!r} holds half a character (a lone surrogate); save the text as valid Unicode")
    return value


def kind(value: Any) -> str:
    """What a value that is no text is, in words."""
    if isinstance(value, list) and value and all(isinstance(part, dict) and _MESSAGE & part.keys() for part in value):
        return "a conversation (a list of messages); give a column that holds the user's message alone"
    return _KINDS.get(type(value), type(value).__name__)


def check_names(names: Sequence[str], where: str) -> None:
    """Raise InputError where two columns have one name: only one of them could be read."""
    if twice := next((name for i, name in enumerate(names) if name and name in names[:i]), None):
        raise InputError(f"{where}: two columns are called {twice!r}; rename or remove one")
