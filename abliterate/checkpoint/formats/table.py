"""The table of output formats: how each is written and verified, and how large it is. ``OUTPUT_FORMATS`` in the settings names them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from abliterate.checkpoint.checked import checked
from abliterate.checkpoint.formats import adapter, checkpoint
from abliterate.checkpoint.formats.format import OutputFormat, WholeEdit

TABLE: Mapping[str, OutputFormat] = {
    "checkpoint": OutputFormat(checkpoint.write, checkpoint.nbytes, checkpoint.holds, checked),
    "adapter": OutputFormat(adapter.write, adapter.nbytes, adapter.holds),
}


def sizes(edit: WholeEdit) -> dict[str, int | None]:
    """The bytes of the edit in every format; None where a format can't hold it."""
    return {name: each.nbytes(edit) for name, each in TABLE.items()}


def format_in(path: Path) -> str | None:
    """The name of the format of which ``path`` is an output; None if it is no such output."""
    return next((name for name, each in TABLE.items() if each.holds(path)), None)
