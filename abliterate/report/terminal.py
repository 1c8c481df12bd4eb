"""The first screen of the report as a table in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from abliterate.outcomes.records import NOT_JUDGED, WITHHELD
from abliterate.report import choice, provenance, sentences
from abliterate.report import claims as verdicts
from abliterate.report.numbers import bounds, outcome, percent
from abliterate.report.page.render import headline, two_models
from abliterate.terminal.console import HarmlessConsole


def show(report: Mapping[str, Any], out: Path) -> None:
    """Print to stdout: failed keep tests, headline, other tests, rates before and after, remaining sentences, and the report's path.

    For an edit, the comparisons of sets with their controls are left to the report itself.
    """
    console = HarmlessConsole(highlight=False)
    edited = two_models(report)
    tests = verdicts.all_of(report)
    failed = [found for found in verdicts.of_keeps(report) if not found.shown]
    after = provenance.after(report)
    _lines(console, [found.sentence() for found in failed], "bold red")
    _lines(console, [headline(report)], "bold")
    for found in tests:
        if found not in failed:
            _lines(console, [found.sentence()], "green" if found.shown else "yellow")
    if report["sets"]:
        console.print()
        console.print(_rates(report["sets"], edited, after))
        console.print()
    if not edited:
        _lines(console, _withheld(report["sets"]))
    for name, rows in report["tables"].items():
        if len(rows) > 1 and not edited:
            console.print()
            console.print(_topics(name, rows))
    if picked := choice.picked(report["selection"]):
        console.print(f"chosen: {picked}", markup=False, soft_wrap=True)
    told = {*(found.sentence() for found in tests), *(sentences.against_control(report) if edited else ())}
    _lines(console, [line for line in sentences.all_of(report) if line not in told])
    if report["drift"]:
        drift = report["drift"]
        answered = drift["kl_first_token_answered"]
        extra = "" if answered is None else f", {answered:.3f} over the prompts that base answers"
        console.print(
            f"KL(base‖{after}), first token, {drift['set']} (n={drift['n']}): {drift['kl_first_token']:.3f} nats{extra}",
            markup=False,
        )
        if drift["kl_sequence"] is not None and drift["ce_base"] is not None:
            console.print(
                f"KL along the base's own replies: {drift['kl_sequence']:.3f} nats per token; cross-entropy of prose "
                f"{drift['ce_base']:.3f} → {drift['ce_edited']:.3f} nats",
                markup=False,
            )
    console.print(f"report: {out / 'report.html'}", markup=False, soft_wrap=True)


def _lines(console: HarmlessConsole, lines: Iterable[str], style: str | None = None) -> None:
    for line in lines:
        console.print(line, markup=False, style=style)


def _withheld(sets: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The outcomes of an audit's withheld replies, one line per set."""
    for name, entry in sets.items():
        counts = [(kind, entry["base"]["outcomes"].get(kind, 0)) for kind in WITHHELD]
        if total := sum(k for _, k in counts):
            found = ", ".join(f"{k} {outcome(kind)}" for kind, k in counts if k)
            yield f"{name}: {total} of {entry['base']['withheld']['n']} replies are withheld: {found}."


def _rates(sets: Mapping[str, Mapping[str, Any]], edited: bool, after: str) -> Table:
    """One row per set and measure, and one per language; ``after``: the name of the second model."""
    sides = ("base", after) if edited else ("base",)
    table = Table("set", "role", "n", "measure", *sides, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    said = ", ".join(outcome(kind) for kind in WITHHELD)
    table.caption, table.caption_justify = f"withheld: {said}; 95 % intervals in brackets", "left"
    for name, entry in sets.items():
        key = "refused" if entry["role"] == "keep" else "withheld"
        table.add_row(*_cells(name, entry["role"], key, entry, edited))
        for lang, part in entry.get("by_lang", {}).items():
            table.add_row(*_cells(f"  {lang}", "", key, part, edited), style="dim")
        table.add_row(*_cells("", "", "degenerate", entry, edited), style="dim")
    return table


def _topics(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Outcome counts, one row per topic and language; a dot stands for zero."""
    outcomes = [kind for kind in rows[0]["base"] if kind != NOT_JUDGED or any(row["base"][kind] for row in rows)]
    table = Table("", "", "n", *map(outcome, outcomes), box=None, pad_edge=False)
    table.columns[0].header = Text(name)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        counts = [str(row["base"][kind] or "·") for kind in outcomes]
        table.add_row(Text(row["topic"] or "(no topic)"), Text(row["lang"]), str(row["n"]), *counts)
    return table


def _cells(name: str, role: str, key: str, entry: Mapping[str, Any], edited: bool) -> list[Text]:
    n = str(entry["base"][key]["n"]) if name else ""
    measure = "broken" if key == "degenerate" else key  # short, so that the table fits 80 columns
    return [Text(cell) for cell in (name, role, n, measure, *(_rate(entry[side][key]) for side in ("base", "edited")[: 1 + edited]))]


def _rate(rate: Mapping[str, Any]) -> str:
    return f"{percent(rate)} ({bounds(rate)})" if rate["n"] else percent(rate)
