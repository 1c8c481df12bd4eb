"""Figures as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from abliterate.outcomes.records import RECORDS


def percent(rate: Mapping[str, Any] | None) -> str:
    """A rate in per cent; a dash if there is none."""
    if rate is None or rate["rate"] is None:
        return "–"
    return f"{100 * rate['rate']:.1f} %"


def interval(rate: Mapping[str, Any] | None) -> str:
    """The rate's counts and 95 % interval."""
    if rate is None or rate["rate"] is None:
        return ""
    return f"{rate['k']}/{rate['n']}, 95 % {bounds(rate)}"


def bounds(rate: Mapping[str, Any]) -> str:
    """The bounds of a rate's 95 % interval."""
    low, high = rate["ci95"]
    return f"{100 * low:.1f}–{100 * high:.1f}"


def corrected(rate: Mapping[str, Any] | None) -> str:
    """The rate corrected for the detector's known errors; empty if there is none."""
    found = None if rate is None else rate.get("corrected")
    if found is None:
        return ""
    return f"corrected {100 * found['rate']:.1f} %, 95 % {bounds(found)}"


def outcome(name: str) -> str:
    """A readable name for an outcome or a measure. Lists of outcomes show report.json's own name beside it."""
    return next((record.title for record in RECORDS if record.name == name), name.replace("_", " "))


def duration(seconds: float) -> str:
    """A duration in hours, minutes or seconds."""
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"
