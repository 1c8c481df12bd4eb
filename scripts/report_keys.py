"""The tables of report.json's keys in docs/report.md, from the schema: one section a record, each key with its type and its meaning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Schema = Mapping[str, Any]  # a JSON Schema, whose keys are its own
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "report.md"
BEGIN, END = "<!-- keys: written by scripts/write_schema -->", "<!-- end of keys -->"


def with_keys(document: str, schema: Schema) -> str:
    """The document with its tables of keys written again. Raises ValueError if it lacks the two marks."""
    before, mark, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"{DOCUMENT.name} needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{sections(schema)}\n{END}{after}"


def sections(schema: Schema) -> str:
    """A section for each record of the report, in the order in which they occur. ``schema``: with the records' names as titles."""
    records: dict[str, Schema] = {str(schema["title"]): schema}
    places: dict[str, list[str]] = {str(schema["title"]): [""]}
    todo = list(records)
    for name in todo:  # which grows
        for key, field in records[name]["properties"].items():
            for other, record in _records_in(field, schema["$defs"]):
                places.setdefault(other, []).append(".".join(filter(None, (places[name][0], key + _deeper(field)))))
                if other not in records:
                    records[other] = record
                    todo.append(other)
    return "\n".join(_section(name, record, places[name], schema["$defs"]) for name, record in records.items())


def _records_in(field: Any, known: Schema) -> Iterator[tuple[str, Schema]]:
    """The records that a field's values may be, by name: those that it refers to, or that are written out in it."""
    if isinstance(field, Mapping):
        if "$ref" in field:
            field = known[field["$ref"].rpartition("/")[2]]
        if "properties" in field:
            yield field["title"], field
        else:
            for inner in field.values():
                yield from _records_in(inner, known)
    elif isinstance(field, list):
        for inner in field:
            yield from _records_in(inner, known)


def _deeper(field: Schema) -> str:
    """What the path of a map's or a list's values adds to the path of the key."""
    found = next((each for each in field.get("anyOf", [field]) if each.get("type") != "null"), field)
    values = found.get("additionalProperties")
    if isinstance(values, Mapping):
        return ".<name>" + _deeper(values)
    return "[]" + _deeper(found["items"]) if "items" in found else ""


def _section(name: str, record: Schema, places: list[str], known: Schema) -> str:
    said = [_prose(record["description"])]
    if any(places):
        said.append(
            "At " + ", ".join(f"`{place}`" for place in places[:2]) + (f" and {len(places) - 2} more places." if places[2:] else ".")
        )
    if record.get("additionalProperties") is True:
        said.append("Other keys may stand beside these.")
    rows = [_row(key, field, key in record.get("required", ()), known) for key, field in record["properties"].items()]
    return "\n".join([f"### {name}\n", " ".join(said) + "\n", "| key | type | meaning |", "|---|---|---|", *rows, ""])


def _row(key: str, field: Schema, required: bool, known: Schema) -> str:
    meaning = field.get("description") or next((record["description"] for _, record in _records_in(field, known)), "")
    if not meaning:
        raise ValueError(f"{key} has no description")
    return f"| `{key}` | {_type(field)}{'' if required else '; may be absent'} | {_prose(meaning)} |"


def _type(field: Schema) -> str:
    """A type in words: ``list of [Rate](#rate)``, ``count``, ``number or null``."""
    if name := field.get("$ref", "").rpartition("/")[2] or ("properties" in field and field["title"]):
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in field:
            found = dict.fromkeys(_type(each) for each in field[several])
            return " or ".join(each for each in found if each != "integer" or "number" not in found)
    if "const" in field:
        return f"`{_json(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{_json(value)}`" for value in field["enum"])
    return _plain_type(field)


def _plain_type(field: Schema) -> str:
    kind = field.get("type", "any")
    if kind == "object":
        values = field.get("additionalProperties")
        return f"map to {_inner(values)}" if isinstance(values, Mapping) else "object"
    if kind == "array":
        pair = field.get("prefixItems")
        return f"[{', '.join(map(_type, pair))}]" if pair else f"list of {_inner(field['items'])}"
    if kind == "integer" and field.get("minimum") == 0:
        return "count"
    if kind == "number" and "maximum" in field:
        return "share"
    return "hash" if "pattern" in field else str(kind)


def _inner(field: Schema) -> str:
    found = _type(field)
    return f"({found})" if " or " in found and not found.startswith("list of ") else found


def _json(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _prose(text: str) -> str:
    """A docstring on one line of a table."""
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")
