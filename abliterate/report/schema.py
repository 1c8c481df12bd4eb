"""The JSON Schema (draft 2020-12) of report.json, which comes with the package."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import WithDefaultSchema

from abliterate.files import Json
from abliterate.report.tree.report import Report

FILE = "schema.json"


class _Plain(GenerateJsonSchema):
    """Without what only models need: titles of fields and classes, and defaults of keys that may be absent."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def with_names() -> Json:
    """The schema of report.json as its models give it, with the name of its record as the title of each object."""
    found: Json = Report.model_json_schema(schema_generator=_Plain, mode="validation")
    return found


def generated() -> Json:
    """The schema of report.json without the names of records: the content of ``FILE``."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:abliterate:report:1", "title": "abliterate report.json"}
    plain: Json = _plain(with_names())
    return head | plain


def _plain(value: object) -> Any:
    """The schema without the names of classes, and without what only OpenAPI knows."""
    if isinstance(value, dict):
        return {
            key: _plain(inner) for key, inner in value.items() if key != "discriminator" and (key != "title" or isinstance(inner, dict))
        }
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def report_schema() -> Json:
    """The schema of report.json, which explains its keys; for any JSON Schema validator."""
    found: Json = json.loads(files("abliterate.report").joinpath(FILE).read_text(encoding="utf-8"))
    return found
