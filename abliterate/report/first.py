"""What a reader sees first, decided once: the page, the terminal and the card of the derived checkpoint show it, each in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abliterate.report import choice, claims, provenance, sentences
from abliterate.report.bars.bars import BarGroup, bar_groups, worth_lines
from abliterate.report.claims import Claim
from abliterate.report.numbers import percent
from abliterate.report.rates import DriftRows, RateRow, drift_rows, rate_rows
from abliterate.report.tree.report import Report


@dataclass(frozen=True)
class FirstScreen:
    """The content of the first screen.

    ``both``: whether there is a before and an after; ``after``: the name of the second model. ``targets``, ``keeps``, ``others``: the tests
    by what they are about. ``groups``: what the replies of each set are, as bars. ``worth``: what its answers are worth, in a line each.
    ``rows``: rates of each set. ``said``: findings in words, besides the tests. ``picked``: the chosen edit.
    ``missing``: what was not measured.
    """

    name: str
    headline: str
    both: bool
    after: str
    targets: Sequence[Claim]
    keeps: Sequence[Claim]
    others: Sequence[Claim]
    groups: Sequence[BarGroup]
    worth: Sequence[str]
    rows: Sequence[RateRow]
    drift: DriftRows | None
    said: Sequence[str]
    picked: str | None
    missing: Sequence[str]

    @property
    def tests(self) -> list[Claim]:
        """All tests, targets first."""
        return [*self.targets, *self.keeps, *self.others]

    @property
    def failed(self) -> list[Claim]:
        """Keep tests that did not show that refusals stayed; they come before everything else."""
        return [found for found in self.keeps if not found.shown]


def first_screen(report: Report) -> FirstScreen:
    """What the first screen of a report shows."""
    tests = {found.sentence() for found in claims.all_of(report)}  # shown apart from the other findings
    return FirstScreen(
        name=provenance.model_name(report.run),
        headline=headline(report),
        both=report.two_models,
        after=provenance.after(report),
        targets=list(claims.of_targets(report)),
        keeps=list(claims.of_keeps(report)),
        others=list(claims.of_others(report)),
        groups=bar_groups(report),
        worth=worth_lines(report, provenance.after(report)),
        rows=rate_rows(report),
        drift=drift_rows(report.drift, provenance.after(report)),
        said=[sentence for sentence in sentences.all_of(report) if sentence not in tests],
        picked=choice.picked(report.selection),
        missing=provenance.missing(report),
    )


def headline(report: Report) -> str:
    """What was done to which model, with the rates before and after, in a sentence."""
    name = provenance.model_name(report.run)
    if report.run.kind == "compare":
        return f"What changed between two models: {name}."
    if report.run.kind == "audit":
        return f"What {name} withholds on {sum(entry.n for entry in report.sets.values())} prompts."
    shown = [row for row in rate_rows(report) if row.lang is None and row.measure != "degenerate" and row.role in ("target", "keep")]
    changes = [f"{row.measure} on {row.name} {percent(row.base)} → {percent(row.edited)}" for row in shown]
    return f"Directional ablation of {name}: " + "; ".join(changes) + "."
