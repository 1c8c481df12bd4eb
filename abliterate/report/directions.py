"""The quality of the estimated directions, as a table in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from abliterate.directions.document import DirectionsQuality, Estimate
from abliterate.terminal.console import HarmlessConsole

_WIDE = 200


def show_directions(document: DirectionsQuality, written: Path | None = None) -> None:
    """Print each estimate where it separates best to stdout; ``document``: the content of directions.json."""
    console = HarmlessConsole(highlight=False)
    if not console.is_terminal:
        console.width = _WIDE  # when written to a file, no column is cut

    def line(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    sets = list(next(iter(document.estimators.values())).cosine_keep)
    columns = ["estimator", "block", "position", "AUC", "d", "norm", *(f"cos {name}" for name in sets), "stability", "left"]
    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, entry in document.estimators.items():
        table.add_row(*(Text(cell) for cell in _cells(name, entry, sets)))
    console.print(table)
    held = "val prompts" if document.held_out == "val" else "the half of the train prompts that each estimate did not use"
    line(f"AUC and d (Cohen's): target against baseline on {held}, at the block and position of the best AUC")
    line("stability: cosine between the estimates on two halves of the train prompts, at the last position")
    if sets:
        line("cos: cosine with each keep set's direction; left: share of the direction that scoping leaves")
    if written is not None:
        line(f"direction: {written}")


def _cells(name: str, entry: Estimate, sets: list[str]) -> list[str]:
    """One estimate at the block and position of its best AUC; ties go to the largest Cohen's d."""
    apart = entry.cohens_d or entry.auc
    places = [(at, index) for at in range(len(entry.auc)) for index in range(1, len(entry.auc[at]))]
    at, index = max(places, key=lambda place: (entry.auc[place[0]][place[1]] or 0.0, apart[place[0]][place[1]] or 0.0))
    cells = [name, str(index - 1), str(entry.positions[at])]
    cells += [f"{entry.auc[at][index]:.3f}", f"{apart[at][index]:.2f}", f"{entry.norm[at][index]:.3g}"]
    cells += [f"{entry.cosine_keep[set_][at][index]:.2f}" for set_ in sets]
    cells.append("" if entry.stability is None else f"{entry.stability[index]:.2f}")
    share = None if entry.share_left is None else entry.share_left[at][index]
    cells.append("" if share is None else f"{100 * share:.0f} %")
    return cells
