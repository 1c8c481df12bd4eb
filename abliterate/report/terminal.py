"""The first screen of the report as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from abliterate.report import choice, sentences
from abliterate.report.numbers import interval, percent
from abliterate.report.page import two_models


def show(report: Mapping[str, Any], out: Path) -> None:
    """Rates before and after, the verdicts, and where the report lies; to stdout."""
    console = Console(highlight=False)
    edited = two_models(report)
    table = Table("set", "role", "measure", "base", *(["edited"] if edited else []), box=None, pad_edge=False)
    for name, entry in report["sets"].items():
        key = "refused" if entry["role"] == "keep" else "withheld"
        table.add_row(*_cells(name, entry["role"], key, entry, edited))
        for lang, part in entry.get("by_lang", {}).items():
            table.add_row(*_cells(f"  {lang}", "", key, part, edited))
        table.add_row(*_cells("", "", "degenerate", entry, edited))
    if report["sets"]:
        console.print(table)
    for name, rows in report["tables"].items():
        if rows and not edited:
            console.print()
            console.print(_topics(name, rows))
    if picked := choice.picked(report["selection"]):
        console.print(f"chosen: {picked}", markup=False, soft_wrap=True)
    for line in sentences.all_of(report):
        console.print(line, markup=False)
    if report["drift"]:
        drift = report["drift"]
        answered = drift["kl_first_token_answered"]
        extra = "" if answered is None else f", {answered:.3f} over those that base answers"
        console.print(
            f"KL(base‖edited), first token, {drift['set']} (n={drift['n']}): {drift['kl_first_token']:.3f} nats{extra}",
            markup=False,
        )
        if drift["kl_sequence"] is not None and drift["ce_base"] is not None:
            console.print(
                f"along the base's own replies: {drift['kl_sequence']:.3f} nats a token; cross-entropy of prose "
                f"{drift['ce_base']:.3f} → {drift['ce_edited']:.3f} nats",
                markup=False,
            )
    console.print(f"report: {out / 'report.html'}", markup=False, soft_wrap=True)


def _topics(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Outcome counts, a row a topic and language; a dot for none."""
    outcomes = list(rows[0]["base"])
    table = Table("", "", "n", *outcomes, box=None, pad_edge=False)
    table.columns[0].header = Text(name)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        counts = [str(row["base"][outcome] or "·") for outcome in outcomes]
        table.add_row(Text(row["topic"] or "(no topic)"), Text(row["lang"]), str(row["n"]), *counts)
    return table


def _cells(name: str, role: str, key: str, entry: Mapping[str, Any], edited: bool) -> list[Text]:
    cells = [name, role, key, f"{percent(entry['base'][key])} ({interval(entry['base'][key])})"]
    if edited:
        cells.append(f"{percent(entry['edited'][key])} ({interval(entry['edited'][key])})")
    return [Text(cell) for cell in cells]
