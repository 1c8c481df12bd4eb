"""A column of a data set, as the ``datasets`` library has it: from the Hub, or from a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from abliterate.errors import InputError, first_line
from abliterate.prompts.row import Row

PREFIX = "hf:"
_BETWEEN = re.compile(r":(?![^\[\]]*\])")  # a colon that stands within no brackets
_SLICE = r"\[(?:(?:-?\d+)?:(?:-?\d+)?|(?:-?\d+%)?:(?:-?\d+%)?)\]"
_SPLIT = re.compile(rf"\w+(?:\.\w+)*(?:{_SLICE}(?:\(\w+\))?)?")


@dataclass(frozen=True)
class Source:
    """What ``hf:DATASET[:CONFIG]:SPLIT:COLUMN`` names; ``split`` may have a slice, as the library writes it: ``train[10:20]``."""

    given: str
    dataset: str
    config: str | None
    split: str
    column: str

    @property
    def name(self) -> str:
        """The data set's own name, and the slice: two slices of one data set are two sets."""
        return self.dataset.rstrip("/").split("/")[-1] + "".join(re.findall(_SLICE, self.split))

    def rows(self) -> Iterator[Row]:
        """A row a row of the split. Raises InputError for what the library says, and where there is no such column."""
        import datasets

        try:
            table = datasets.load_dataset(self.dataset, self.config, split=self.split, trust_remote_code=False)
        except Exception as error:  # the library raises many kinds; each means that the data set can't be had
            reason = first_line(error.__cause__ or error)  # the library's own "an error occurred" says nothing
            raise InputError(f"{self.given}: the {'slice' if '[' in self.split else 'split'} can't be had ({reason})") from None
        if self.column not in table.column_names:
            raise InputError(f"{self.given}: no column {self.column!r}; it has {', '.join(table.column_names)}")
        for number, value in enumerate(table[self.column], 1):
            yield Row(number, f"{self.given}: row {number}", {self.column: value}, self.column)


def source_of(given: str) -> Source:
    """The parts of a source. Raises InputError where they are not as many as must be, or a slice is written in another way."""
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
    return InputError(f"{given}: a slice is written SPLIT[FROM:TO], by rows or by percent: train[:10], train[10:20], train[:10%]")
