"""Figures as text."""

from __future__ import annotations

from abliterate.measures.parts.elicitation import Auc
from abliterate.measures.parts.rates import Corrected, Outcomes, Rate, Withheld
from abliterate.outcomes.records import RECORDS, WITHHELD


def percent(rate: Rate | None) -> str:
    """A rate in per cent; a dash if there is none."""
    return "–" if rate is None or rate.rate is None else f"{100 * rate.rate:.1f} %"


def per_cent(rate: Rate) -> str:
    """A rate in whole per cent; a dash if there is none."""
    return "–" if rate.rate is None else f"{100 * rate.rate:.0f} %"


def interval(rate: Rate | None) -> str:
    """The rate's counts and 95 % interval."""
    return "" if rate is None or rate.rate is None else f"{rate.k}/{rate.n}, 95 % {bounds(rate)}"


def bounds(rate: Rate | Corrected) -> str:
    """The bounds of a rate's 95 % interval; empty if there is none."""
    return "" if rate.ci95 is None else f"{100 * rate.ci95[0]:.1f}–{100 * rate.ci95[1]:.1f}"


def corrected(rate: Rate | None) -> str:
    """The rate corrected for the detector's known errors; empty if there is none."""
    found = rate.corrected if isinstance(rate, Withheld) else None
    return "" if found is None else f"corrected {100 * found.rate:.1f} %, 95 % {bounds(found)}"


def auc_of(found: Auc | None) -> str:
    """An AUC with its interval; a dash if there is none."""
    if found is None or found.auc is None:
        return "–"
    return f"{found.auc:.2f}" if found.auc_ci95 is None else f"{found.auc:.2f} ({found.auc_ci95[0]:.2f}–{found.auc_ci95[1]:.2f})"


def outcome(name: str) -> str:
    """A readable name for an outcome or a measure. Lists of outcomes show report.json's own name beside it."""
    return next((record.title for record in RECORDS if record.name == name), name.replace("_", " "))


def withheld() -> str:
    """The outcomes that count as withheld, each with its meaning."""
    return ", ".join(f"{outcome(name)} ({Outcomes.meaning(name)})" for name in WITHHELD)


def duration(seconds: float) -> str:
    """A duration in hours, minutes or seconds."""
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"
