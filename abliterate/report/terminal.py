"""The first screen of the report as a table in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from abliterate.measures.parts.moved import Drift
from abliterate.measures.parts.rates import Rate
from abliterate.measures.parts.sets import Row
from abliterate.outcomes.records import NOT_JUDGED, WITHHELD
from abliterate.report import sentences
from abliterate.report.first import FirstScreen, first_screen
from abliterate.report.numbers import bounds, outcome, percent, withheld
from abliterate.report.page.topics import most_withheld_first
from abliterate.report.rates import RateRow
from abliterate.report.tree.report import Report
from abliterate.terminal.console import HarmlessConsole


def show(report: Report, out: Path) -> None:
    """Print to stdout: failed keep tests, headline, other tests, rates before and after, remaining sentences, and the report's path.

    For an edit, the comparisons of sets with their controls are left to the report itself.
    """
    console = HarmlessConsole(highlight=False)
    first = first_screen(report)
    _lines(console, [found.sentence() for found in first.failed], "bold red")
    _lines(console, [first.headline], "bold")
    for found in first.tests:
        if found not in first.failed:
            _lines(console, [found.sentence()], "green" if found.shown else "yellow")
    if first.rows:
        console.print()
        console.print(_rates(first))
        console.print()
    _lines(console, first.worth)
    if not first.both:
        _lines(console, _withheld(report))
        for name, rows in report.tables.items():
            if len(rows) > 1:
                console.print()
                console.print(_topics(name, rows))
    if first.picked:
        console.print(f"chosen edit: {first.picked}", markup=False, soft_wrap=True)
    told = set(sentences.against_control(report)) if first.both else set()
    _lines(console, [line for line in first.said if line not in told])
    if report.drift:
        _lines(console, _drift(report.drift, first.after))
    console.print(f"report: {out / 'report.html'}", markup=False, soft_wrap=True)


def _lines(console: HarmlessConsole, lines: Iterable[str], style: str | None = None) -> None:
    for line in lines:
        console.print(line, markup=False, style=style)


def _drift(drift: Drift, after: str) -> Iterator[str]:
    answered = drift.kl_first_token_answered
    extra = "" if answered is None else f" ({answered:.3f} on the prompts that the base answers)"
    along = "" if drift.kl_sequence is None else f"; {drift.kl_sequence:.3f} nats per token along the base's replies"
    yield f"Drift on {drift.set} (n = {drift.n}), KL(base‖{after}): {drift.kl_first_token:.3f} nats at the first token{extra}{along}."
    if drift.ce_base is not None:
        yield f"Cross-entropy of prose: {drift.ce_base:.3f} → {drift.ce_edited:.3f} nats per token."


def _withheld(report: Report) -> Iterator[str]:
    """The outcomes of an audit's withheld replies, one line per set."""
    for name, entry in report.sets.items():
        counts = [(kind, entry.base.outcomes.count(kind)) for kind in WITHHELD]
        if total := sum(k for _, k in counts):
            found = ", ".join(f"{k} {outcome(kind)}" for kind, k in counts if k)
            yield f"{name}: {total} of {entry.base.withheld.n} replies are withheld: {found}."


def _rates(first: FirstScreen) -> Table:
    """One row per set and measure, and one per language."""
    columns = ("base", first.after) if first.both else ("base",)
    table = Table("set", "role", "n", "measure", *columns, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.caption, table.caption_justify = f"withheld: {withheld()}; broken: loops or word salad; 95 % intervals in brackets", "left"
    for row in first.rows:
        main = row.lang is None and row.measure != "degenerate"
        table.add_row(*_cells(row, first.both), style=None if main else "dim")
    return table


def _topics(name: str, rows: Sequence[Row]) -> Table:
    """Outcome counts, one row per topic and language, what is withheld most first; a dot stands for zero."""
    outcomes = [kind for kind, _ in rows[0].base.items() if kind != NOT_JUDGED or any(row.base.not_judged for row in rows)]
    table = Table("", "", "n", *map(outcome, outcomes), box=None, pad_edge=False)
    table.columns[0].header = Text(name)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in most_withheld_first(rows):
        counts = [str(row.base.count(kind) or "·") for kind in outcomes]
        table.add_row(Text(row.topic or "(no topic)"), Text(row.lang), str(row.n), *counts)
    return table


def _cells(row: RateRow, both: bool) -> list[Text]:
    """The name and the role of a set stand in its first row only, a language in the row of its prompts."""
    broken = row.measure == "degenerate"  # called by a short name, so that the table fits 80 columns
    name, role = ("", "") if broken else (row.name, row.role) if row.lang is None else (f"  {row.lang}", "")
    found = [row.base, *([row.edited] if both else [])]
    return [Text(cell) for cell in (name, role, "" if broken else str(row.n), "broken" if broken else row.measure, *map(_rate, found))]


def _rate(rate: Rate | None) -> str:
    return f"{percent(rate)} ({bounds(rate)})" if rate is not None and rate.n else percent(rate)
