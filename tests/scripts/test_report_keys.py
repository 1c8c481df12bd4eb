"""The tables of report.json's keys in docs/report.md are those of the records."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from abliterate.report.schema import with_names

SCRIPT = Path(__file__).parents[2] / "scripts" / "report_keys.py"


@pytest.fixture(scope="module")
def keys() -> Any:
    spec = importlib.util.spec_from_file_location("report_keys", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def properties(schema: Any) -> Iterator[str]:
    """The keys of every object in a schema."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for inner in schema.values():
            yield from properties(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from properties(inner)


def test_the_tables_in_the_document_are_those_of_the_records(keys: Any) -> None:
    document = keys.DOCUMENT.read_text(encoding="utf-8")
    assert keys.with_keys(document, with_names()) == document, "run scripts/write_schema"


def test_every_record_and_every_key_has_its_row(keys: Any) -> None:
    text = keys.sections(with_names())
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows} == set(properties(with_names()))
    assert all(len(row) < 300 and not row.endswith("|  |") for row in rows)
    assert {f"### {name}" for name in with_names()["$defs"]} <= set(text.splitlines())


def test_types_are_said_in_words(keys: Any) -> None:
    text = keys.sections(with_names())
    assert "| `k` | count | The count. |" in text
    assert "| `edited` | [Figures](#figures) or null | Null in an audit. |" in text
    assert "| `by_topic` | map to map to [Topic](#topic) |" in text
    assert "At `sets.<name>.base.at_tokens[]`." in text


def test_a_key_without_a_meaning_and_a_document_without_the_marks_are_refused(keys: Any) -> None:
    schema = json.loads(json.dumps(with_names()))
    del schema["$defs"]["Rate"]["properties"]["k"]["description"]
    with pytest.raises(ValueError, match="k has no description"):
        keys.sections(schema)
    with pytest.raises(ValueError, match="needs the lines"):
        keys.with_keys("# report.json", with_names())
