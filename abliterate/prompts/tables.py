"""Input tables with named columns: .csv and .parquet files."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from abliterate.errors import InputError
from abliterate.prompts.lines import text_of
from abliterate.prompts.row import TEXT_COLUMNS, Row, check_names

_OTHER_MARKS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def csv_rows(path: Path) -> Iterator[Row]:
    """One row per record that is not empty, by RFC 4180. An empty or blank cell is null; spaces before a cell are ignored.

    Raises InputError naming the row, its line and both field counts if a row and the header differ in the number of fields, or if a quote
    is left open: text after an unquoted comma is never dropped.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = io.StringIO(text_of(path), newline="").readlines()
    reader = csv.reader(lines, strict=True, skipinitialspace=True)
    header: list[str] = []
    number, start = 0, 0  # number of the row, and of the lines before it
    while True:
        where = f"{path}: row {number + 1} (line {start + 1})" if header else f"{path}: the header"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{where}: {_unreadable(error, lines[start:], header)}") from None
        start = reader.line_num
        if fields is None:
            return
        if not fields:  # a blank line
            continue
        if not header:
            header = _header(path, fields)
            continue
        number += 1
        if len(fields) != len(header):
            raise InputError(f"{where}: {_counts(fields, header)}; {_advice(fields, header)}")
        cells = [field if field.strip() else None for field in fields]
        if any(cells):
            yield Row(number, where, {name: cell for name, cell in zip(header, cells, strict=True) if name})


def _header(path: Path, fields: Sequence[str]) -> list[str]:
    names = [field.strip() for field in fields]
    check_names(names, str(path))
    for mark, called in _OTHER_MARKS.items():
        parts = {part.strip(' "') for name in names for part in name.split(mark)}
        if not parts.isdisjoint(TEXT_COLUMNS) and set(names).isdisjoint(TEXT_COLUMNS):
            raise InputError(f"{path}: its fields are separated by {called}; save it with commas")
    return names


def _counts(fields: Sequence[str], header: Sequence[str]) -> str:
    found = "1 field" if len(fields) == 1 else f"{len(fields)} fields"
    return f"{found}, but the header has {len(header)} ({', '.join(header)[:80]})" if header else found


def _advice(fields: Sequence[str], header: Sequence[str]) -> str:
    if len(fields) > len(header):
        return 'put double quotes around texts that hold commas ("one, two")'
    return "give every row as many fields as the header, and put double quotes around texts that hold line breaks"


def _unreadable(error: csv.Error, rest: Sequence[str], header: Sequence[str]) -> str:
    """What is wrong with the first record of these lines."""
    if "NUL" in str(error) or "limit" in str(error):
        return f"it can't be read ({error})"
    fields = next(csv.reader(rest, skipinitialspace=True), [])
    return f"a quoted text is not closed ({_counts(fields, header)}); close it, and double the quotes inside it"


def parquet_rows(path: Path) -> Iterator[Row]:
    """One row per row of the file. Raises InputError if it is not a parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        check_names(pyarrow.parquet.read_schema(path).names, str(path))
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from None
    for number, row in enumerate(rows, 1):
        yield Row(number, f"{path}: row {number}", row)
