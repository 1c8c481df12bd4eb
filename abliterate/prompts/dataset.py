"""A column of a data set, loaded with the ``datasets`` library from the Hub or from a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from abliterate.errors import InputError, first_line
from abliterate.prompts.row import Row

PREFIX = "hf:"
_BETWEEN = re.compile(r":(?![^\[\]]*\])")  # a colon outside brackets
_SLICE = r"\[(?:(?:-?\d+)?:(?:-?\d+)?|(?:-?\d+%)?:(?:-?\d+%)?)\]"
_SPLIT = re.compile(rf"\w+(?:\.\w+)*(?:{_SLICE}(?:\(\w+\))?)?")


@dataclass(frozen=True)
class Source:
    """A parsed ``hf:DATASET[:CONFIG]:SPLIT:COLUMN``. ``split`` may have a slice in the library's syntax: ``train[10:20]``."""

    given: str
    dataset: str
    config: str | None
    split: str
    column: str

    @property
    def name(self) -> str:
        """The data set's name with the slice, so that two slices of one data set are two sets."""
        return self.dataset.rstrip("/").split("/")[-1] + "".join(re.findall(_SLICE, self.split))

    def rows(self) -> Iterator[Row]:
        """One row per row of the split. Raises InputError if the library can't load it, or if there is no such column."""
        import datasets

        try:
            table = datasets.load_dataset(self.dataset, self.config, split=self.split, trust_remote_code=False)
        except Exception as error:  # the library raises many kinds; each means that the data set can't be loaded
            reason = first_line(error.__cause__ or error)  # the library's own "an error occurred" says nothing
            raise InputError(f"{self.given}: can't load the {'slice' if '[' in self.split else 'split'} ({reason})") from None
        if self.column not in table.column_names:
            raise InputError(f"{self.given}: no column {self.column!r}; it has {', '.join(table.column_names)}")
        for number, value in enumerate(table[self.column], 1):
            yield Row(number, f"{self.given}: row {number}", {self.column: value}, self.column)


def source_of(given: str) -> Source:
    """Parse a source. Raises InputError if the number of parts is wrong or a slice is malformed."""
    parts = _BETWEEN.split(given.removeprefix(PREFIX))
    if given.count("[") != given.count("]"):
        raise _bad_slice(given)
    if len(parts) not in (3, 4) or not all(parts):
        raise InputError(f"{given}: write hf:DATASET:SPLIT:COLUMN or hf:DATASET:CONFIG:SPLIT:COLUMN")
    split = parts[-2]
    if "[" in split and not all(_SPLIT.fullmatch(part.strip()) for part in split.split("+")):
        raise _bad_slice(given)
    return Source(given, parts[0], parts[1] if len(parts) == 4 else None, split, parts[-1])


def _bad_slice(given: str) -> InputError:
    return InputError(f"{given}: write a slice as SPLIT[FROM:TO], in rows or in percent: train[:10], train[10:20], train[:10%]")
