"""The table of ``layouts.toml``, read once."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def table() -> dict[str, Any]:
    """Families, and the other tables about names and architectures; the file explains its keys."""
    return tomllib.loads(files("abliterate.model").joinpath("layouts.toml").read_text(encoding="utf-8"))
