"""Small tables of the page: rates with replies cut short, and thoughts beside answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_THOUGHTS = (("shut", "empty or refusing"), ("open", "open"))


def cuts(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rates with each reply cut at several lengths in tokens: {lengths, rows: {set, model, measure, rates, whole}}; None without any.

    A rate is the share of the set's judged replies, None at lengths that no reply of that model reaches.
    """
    rows = [_cut(name, entry, side) for name, entry, side in _sides(report) if entry[side].get("at_tokens")]
    if not rows:
        return None
    lengths = sorted({tokens for row in rows for tokens in row["rates"]})
    return {"lengths": lengths, "rows": [{**row, "rates": [row["rates"].get(tokens) for tokens in lengths]} for row in rows]}


def _cut(name: str, entry: Mapping[str, Any], side: str) -> dict[str, Any]:
    measure = "refused" if entry["role"] == "keep" else "withheld"
    n = entry[side][measure]["n"]
    rates = {each["tokens"]: each[measure] / n if n else None for each in entry[side]["at_tokens"]}
    return {"set": name, "model": side, "measure": measure, "rates": rates, "whole": entry[side][measure]["rate"]}


def thoughts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Counts of answers, by whether the thought before them is shut or open: {set, model, thought, withheld, not_withheld}."""
    return [
        {"set": name, "model": side, "thought": said, **crossed[side][key]}
        for name, crossed in (report.get("thought_by_answer") or {}).items()
        for side in ("base", "edited")
        if crossed[side] is not None
        for key, said in _THOUGHTS
    ]


def _sides(report: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    for name, entry in report["sets"].items():
        yield from ((name, entry, side) for side in ("base", "edited") if entry[side] is not None)
