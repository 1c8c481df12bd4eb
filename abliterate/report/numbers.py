"""Figures as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def percent(rate: Mapping[str, Any] | None) -> str:
    """A rate as a person reads it."""
    if rate is None or rate["rate"] is None:
        return "–"
    return f"{100 * rate['rate']:.1f} %"


def interval(rate: Mapping[str, Any] | None) -> str:
    """The rate's counts and 95 % interval."""
    if rate is None or rate["rate"] is None:
        return ""
    return f"{rate['k']}/{rate['n']}, 95 % {bounds(rate)}"


def bounds(rate: Mapping[str, Any]) -> str:
    """A rate's 95 % interval alone."""
    low, high = rate["ci95"]
    return f"{100 * low:.1f}–{100 * high:.1f}"


def corrected(rate: Mapping[str, Any] | None) -> str:
    """The rate put right for what its detector is known to miss, where it has one."""
    found = None if rate is None else rate.get("corrected")
    if found is None:
        return ""
    return f"corrected {100 * found['rate']:.1f} %, 95 % {bounds(found)}"


def outcome(name: str) -> str:
    """An outcome or a measure as a person reads it; where outcomes are listed, the name that report.json has stands beside it."""
    return "broken output" if name == "degenerate" else name.replace("_", " ")


def duration(seconds: float) -> str:
    """A time as a person reads it."""
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"
