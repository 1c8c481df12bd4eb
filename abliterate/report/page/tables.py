"""Small tables of the page: rates with replies cut short, and thoughts beside answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abliterate.measures.parts.rates import Figures
from abliterate.measures.parts.sets import SetEntry, Side, sides
from abliterate.measures.parts.thoughts import Crossed
from abliterate.report.tree.report import Report


@dataclass(frozen=True)
class CutRow:
    """One model's rate on a set, with its replies cut at each of several lengths, and whole; None at lengths that no reply reaches."""

    set: str
    model: Side
    measure: str
    rates: Sequence[float | None]
    whole: float | None


@dataclass(frozen=True)
class Cuts:
    """Rates with each reply cut at several ``lengths`` in tokens. A rate is the share of the set's judged replies."""

    lengths: Sequence[int]
    rows: Sequence[CutRow]


def cuts(report: Report) -> Cuts | None:
    """The rates with replies cut short; None without any."""
    found = [(name, entry, side, figures) for name, entry in report.sets.items() for side, figures in sides(entry) if figures.at_tokens]
    if not found:
        return None
    lengths = sorted({cut.tokens for *_, figures in found for cut in figures.at_tokens or ()})
    return Cuts(lengths, [_cut(*each, lengths) for each in found])


def _cut(name: str, entry: SetEntry, side: Side, figures: Figures, lengths: Sequence[int]) -> CutRow:
    whole = figures.rate(entry.measure)
    rates = {cut.tokens: cut.count(entry.measure) / whole.n if whole.n else None for cut in figures.at_tokens or ()}
    return CutRow(name, side, entry.measure, [rates.get(tokens) for tokens in lengths], whole.rate)


@dataclass(frozen=True)
class ThoughtRow:
    """How many answers of one model are withheld, or not, after thoughts of one kind."""

    set: str
    model: Side
    thought: str
    withheld: int
    not_withheld: int


def thoughts(report: Report) -> list[ThoughtRow]:
    """Counts of answers, by whether the thought before them is shut or open."""
    rows = []
    for name, both in (report.thought_by_answer or {}).items():
        models: list[tuple[Side, Crossed | None]] = [("base", both.base), ("edited", both.edited)]
        for side, crossed in models:
            if crossed is not None:
                for said, answers in (("empty or refusing", crossed.shut), ("open", crossed.open)):
                    rows.append(ThoughtRow(name, side, said, answers.withheld, answers.not_withheld))
    return rows
