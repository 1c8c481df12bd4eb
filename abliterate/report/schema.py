"""The JSON Schema (draft 2020-12) of report.json, which comes with the package."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

FILE = "schema.json"


def report_schema() -> dict[str, Any]:
    """The schema of report.json, which explains its keys; for any JSON Schema validator."""
    found: dict[str, Any] = json.loads(files("abliterate.report").joinpath(FILE).read_text(encoding="utf-8"))
    return found
