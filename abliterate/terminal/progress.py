"""Progress on stderr: a bar with an ETA on a terminal, otherwise one line per stage, and a few more if the stage is long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from abliterate.terminal.console import HarmlessConsole

console = HarmlessConsole(stderr=True, highlight=False)
FIRST = 60.0  # seconds until the first line about an unfinished stage; the time doubles for each further line


def say(line: str) -> None:
    """Write a line to stderr."""
    console.print(line, markup=False, soft_wrap=True)


@cache
def say_once(line: str) -> None:
    """Write a line to stderr, but only once per process."""
    say(line)


@contextmanager
def stage(what: str, total: int, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[int | float], None]]:
    """Yields a function to call with the number of further parts of ``total`` that are done. ``clock`` returns seconds."""
    started = clock()
    if not sys.stderr.isatty():
        yield _Spoken(what, total, clock, started).hear
        say(f"{what}: {total} in {clock() - started:.1f} s")
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)


@dataclass
class _Spoken:
    """Lines about the progress of a stage. The first parts may be done from an earlier run, so only the later ones tell the pace."""

    what: str
    total: int
    clock: Callable[[], float]
    started: float
    due: float = FIRST
    done: float = 0.0
    first: tuple[float, float] | None = None  # seconds and parts done at the first report

    def hear(self, done: int | float) -> None:
        """Add ``done`` parts; write a line if one is due."""
        passed = self.clock() - self.started
        self.done += done
        self.first = self.first or (passed, self.done)
        if passed < self.due:
            return
        while self.due <= passed:
            self.due *= 2
        say(f"{self.what}: {self.done:.0f} of {self.total}{self._left(passed, *self.first)}")

    def _left(self, passed: float, since: float, before: float) -> str:
        """The remaining time at the pace so far, as the end of a line; empty if there is no estimate."""
        if self.done == before:  # nothing since then
            since = before = 0.0
        if not before < self.done < self.total or self.done < _TELLING * self.total:
            return ""
        seconds = (passed - since) / (self.done - before) * (self.total - self.done)
        return f", about {_duration(seconds)} left"


_TELLING = 0.02  # the share of the work after which the pace is reliable


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
