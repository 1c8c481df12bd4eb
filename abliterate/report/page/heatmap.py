"""Heat maps of what is withheld, by topic and language, each set beside its control; darker cells mean more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from abliterate.outcomes.records import NOT_JUDGED, WITHHELD

_LEVELS = 10
_ROWS = 200  # topics shown per set; report.json has all


def heat_maps(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One map per set that has topics or categories: {name, control, langs, sets, columns, rows, tested, significant, left_out}.

    ``columns``: (set, model) pairs, which repeat for each language; a cell is {k, n, level}, or None if there are no prompts.
    A control is shown beside its set, without a map of its own, if both have topics of the same name in the same language.
    """
    pairs = [(entry["set"], entry["control"]) for entry in report["against_control"] or []]
    controls = {name: control for name, control in pairs if _topics(report, name) & _topics(report, control)}
    maps = [_map(report, name, controls.get(name)) for name in report["sets"] if name not in controls.values()]
    return [found for found in maps if len(found["rows"]) * len(found["langs"]) > 1]  # one cell is the set's own rate


def _topics(report: Mapping[str, Any], name: str) -> set[tuple[str, str]]:
    """The (topic, language) pairs of a set's table."""
    return {(row["topic"], row["lang"]) for row in report["tables"].get(name) or [] if row["topic"]}


def _map(report: Mapping[str, Any], name: str, control: str | None) -> dict[str, Any]:
    both = report["sets"][name]["edited"] is not None
    sides = ("base", "edited") if both else ("base",)
    cells = _by_language(report["tables"].get(name) or []) or _by_category(report, name)
    others = _by_language(report["tables"][control]) if control else {}
    langs = sorted({lang for _, lang in cells})
    sets = [name, *([control] if control else [])]
    columns = [(of, side) for of in sets for side in sides]
    topics = list(dict.fromkeys(topic for topic, _ in cells))
    tests = {topic: (entry.get("paired") or {}).get("holm_p") for topic, entry in report["by_topic"].get(name, {}).items()}
    rows = [
        {
            "topic": topic,
            "cells": [(others if of == control else cells).get((topic, lang), {}).get(side) for lang in langs for of, side in columns],
            "p": tests.get(topic),
        }
        for topic in topics[:_ROWS]
    ]
    significant = any(p is not None and p < 0.05 for p in tests.values())
    return {
        "name": name,
        "control": control,
        "langs": langs,
        "sets": sets,
        "columns": columns,
        "rows": rows,
        "tested": both,
        "significant": significant,
        "left_out": max(0, len(topics) - _ROWS),
    }


def _by_language(table: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Cells of each model by topic and language."""
    found = {}
    for row in table:
        sides = {side: sum(row[side][o] for o in WITHHELD) for side in ("base", "edited") if row[side] is not None}
        found[row["topic"] or "(no topic)", row["lang"]] = {
            side: _cell(k, row["n"] - row[side].get(NOT_JUDGED, 0)) for side, k in sides.items()
        }
    return found


def _by_category(report: Mapping[str, Any], name: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Cells of a set whose prompts have only categories, all languages together."""
    lang = report["sets"][name]["lang"]
    return {
        (topic, lang): {side: _cell(entry[side]["k"], entry[side]["n"]) for side in ("base", "edited") if entry[side] is not None}
        for topic, entry in report["by_topic"].get(name, {}).items()
    }


def _cell(k: int, n: int) -> dict[str, Any] | None:
    return {"k": k, "n": n, "level": round(_LEVELS * k / n)} if n else None
