"""Progress for people: a bar with an ETA on a terminal, one line a stage where there is none. Writes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """One line to stderr."""
    console.print(line, markup=False, soft_wrap=True)


@contextmanager
def stage(what: str, total: int) -> Iterator[Callable[[int | float], None]]:
    """Yields a function that is told how many more of ``total`` are done."""
    started = time.monotonic()
    if not sys.stderr.isatty():
        yield lambda done: None
        say(f"{what}: {total} in {time.monotonic() - started:.1f} s")
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
