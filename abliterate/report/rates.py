"""Figures of the first screen: rates before and after on one scale, and drift on its own scale in nats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from abliterate.files import Interval
from abliterate.measures.parts.moved import Controls, Drift
from abliterate.measures.parts.rates import Measure, Rate
from abliterate.measures.parts.sets import Compared, SetEntry, sides
from abliterate.outcomes.records import NOT_JUDGED, Outcome
from abliterate.report.numbers import outcome
from abliterate.report.tree.report import Report

_DRIFTS = (
    ("kl_first_token", "first token", "KL(base‖{after}) of the first token, all {n} prompts"),
    (
        "kl_first_token_answered",
        "same, answered prompts",
        "KL(base‖{after}) of the first token, the {n_answered} prompts that the base answers",
    ),
    ("kl_sequence", "per token of base's replies", "KL(base‖{after}) per token along the base's own replies"),
)


@dataclass(frozen=True)
class RateRow:
    """One rate of a set, or of its prompts in one language (``lang``), before and after; ``edited`` is None if one model was asked."""

    name: str
    role: str
    lang: str | None
    measure: Measure
    base: Rate
    edited: Rate | None

    @property
    def n(self) -> int:
        return self.base.n

    @property
    def said(self) -> str:
        """The measure as people read it."""
        return outcome(self.measure)


def rate_rows(report: Report) -> list[RateRow]:
    """For each set: the measure that it is judged by, the same by language if there are several, and its broken output."""
    rows = []
    for name, entry in report.sets.items():
        rows.append(_row(name, entry, entry, None, entry.measure))
        rows += [_row(name, entry, part, lang, entry.measure) for lang, part in entry.languages.items()]
        rows.append(_row(name, entry, entry, None, "degenerate"))
    return rows


def _row(name: str, entry: SetEntry, part: SetEntry | Compared, lang: str | None, measure: Measure) -> RateRow:
    return RateRow(name, entry.role, lang, measure, part.base.rate(measure), part.edited.rate(measure) if part.edited else None)


@dataclass(frozen=True)
class NatsRow:
    """A mean in nats with its interval; ``said``: what it is, in words."""

    label: str
    said: str
    value: float
    ci95: Interval


@dataclass(frozen=True)
class DriftRows:
    """Drift on the prompts of ``set``; ``end``: the round number at which the scale ends."""

    set: str
    end: float
    rows: Sequence[NatsRow]


def drift_rows(drift: Drift | None, after: str = "edited") -> DriftRows | None:
    """Means in nats with their intervals; None without any. ``after``: the name of the second model."""
    if drift is None:
        return None
    counts = {"n": drift.n, "n_answered": drift.n_answered, "after": after}
    rows = [NatsRow(label, said.format(**counts), *found) for key, label, said in _DRIFTS if (found := drift.mean(key))]
    if not rows:
        return None
    return DriftRows(drift.set, round_up(max([0.1, *(max(row.value, row.ci95[1]) for row in rows)])), rows)


def nats_end(controls: Controls) -> float:
    """The round number at which the scale of the drift of the edit and of random directions ends."""
    nats = [controls.kl_first_token.edited, *controls.kl_first_token.random]
    return round_up(max([0.1, *(value for value in nats if value is not None)]))


def round_up(value: float) -> float:
    """Round up to one of 0.1, 0.2, 0.5, 1, 2, 5, ..."""
    power = 10.0 ** math.floor(math.log10(value))
    return round(next((step * power for step in (1, 2, 5) if step * power >= value - 1e-12), 10 * power), 12)


def outcomes_there(report: Report) -> list[Outcome]:
    """The outcomes that the page lists: all of them, but ``not_judged`` only if a reply has it."""
    every = [found.outcomes for entry in report.sets.values() for _, found in sides(entry)]
    names = dict.fromkeys(name for outcomes in every for name, _ in outcomes.items())
    return [name for name in names if name != NOT_JUDGED or any(outcomes.not_judged for outcomes in every)]
