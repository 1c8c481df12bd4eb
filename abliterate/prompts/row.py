"""A row of user input: its cells and its place. Decides, for every format, whether a cell holds text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from abliterate.errors import InputError
from abliterate.files import Json

TEXT_COLUMNS = ("text", "prompt")
_KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
_MESSAGE = frozenset({"content", "value"})  # keys that hold the text of a conversation's messages


@dataclass(frozen=True)
class Row:
    """``where``: the file or data set and the line or row, for error messages. A cell is None if it is null, or empty in a table.

    ``column``: the text column, if the source names one.
    """

    number: int
    where: str
    cells: Json
    column: str | None = None

    def text(self, column: str) -> str | None:
        """The text of a column; None if it is null or missing. Raises InputError if it is not text."""
        value: str | None = self.cells.get(column)
        if value is not None:
            _check_text(value, column, self.where)
        return value

    def label(self, column: str) -> str | None:
        """A short text or a number, as text; None if it is null, empty or missing. Raises InputError if it is anything else."""
        value = self.cells.get(column)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return str(value)
        return self.text(column) or None

    def texts(self, column: str) -> tuple[str, ...]:
        """A list of texts, or one text separated by bars; blank ones are left out. Raises InputError if it is anything else."""
        given = self.cells.get(column)
        parts = given.split("|") if isinstance(given, str) else [] if given is None else given
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise InputError(f"{self.where}: {column!r} must be a list of texts (or one text, separated by |)")
        for part in parts:
            _check_text(part, column, self.where)
        return tuple(part.strip() for part in parts if part.strip())


def _check_text(value: Any, column: str, where: str) -> None:
    """Raise InputError if a cell is not text."""
    if not isinstance(value, str):
        raise InputError(f"{where}: {column!r} must be a text, not {kind(value)}")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise InputError(f"{where}: {column!r} holds half a character (a lone surrogate); save the text as valid Unicode")


def kind(value: Any) -> str:
    """The kind of a value that is not text, in words."""
    if isinstance(value, list) and value and all(isinstance(part, dict) and _MESSAGE & part.keys() for part in value):
        return "a conversation (a list of messages); give a column that holds the user's message alone"
    return _KINDS.get(type(value), type(value).__name__)


def check_names(names: Sequence[str], where: str) -> None:
    """Raise InputError if two columns have the same name: only one of them could be read."""
    if twice := next((name for i, name in enumerate(names) if name and name in names[:i]), None):
        raise InputError(f"{where}: two columns are called {twice!r}; rename or remove one")
