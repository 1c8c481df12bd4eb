"""Print the result of reproducing a run in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from abliterate.report.tree.reproduction import VERDICTS, Reproduction, Verdict
from abliterate.terminal.console import HarmlessConsole

LISTED = 20


def show(document: Reproduction) -> None:
    """Print the figures by set and measure, what differs, and the totals to stdout."""
    console = HarmlessConsole(highlight=False)
    table = Table("set", "measure", *VERDICTS, box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    last = None
    for row in document.by_measure:
        counts = [str(row.of(verdict) or "·") for verdict in VERDICTS]
        table.add_row(Text(row.set if row.set != last else ""), Text(row.measure), *counts)
        last = row.set
    console.print(table)
    for line in lines(document):
        console.print(line, markup=False, soft_wrap=True)


def lines(document: Reproduction, most: int = LISTED) -> Iterator[str]:
    """One line per difference: first settings, versions and files, then at most ``most`` figures; last, the totals."""
    for kind, changed in document.differences.kinds():
        for key, (before, now) in changed.items():
            yield f"{kind}: {key} was {_short(before)}, is {_short(now)}"
    listed: tuple[Verdict, ...] = ("different", "within")
    rows = [row for verdict in listed for row in document.figures if row.verdict == verdict]
    for row in rows[:most]:
        interval = f" [{row.ci95[0]:.3g}, {row.ci95[1]:.3g}]" if row.ci95 else ""
        of = f" of {row.of}" if row.of else ""
        yield f"{row.verdict}: {' › '.join(row.path)} was {_short(row.before)}{of}{interval}, is {_short(row.now)}"
    if len(rows) > most:
        yield f"... and {len(rows) - most} more in reproduction.json"
    counts = document.totals
    yield f"figures: {counts.identical} identical, {counts.within} within their intervals, {counts.different} different"


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "missing" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
