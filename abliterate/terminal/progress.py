"""Progress for people: a bar with an ETA on a terminal, one line a stage where there is none, and some more of a long one.

Writes to stderr.
"""

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
FIRST = 60.0  # seconds after which a stage says how far it is; then after twice as many, and so on


def say(line: str) -> None:
    """One line to stderr."""
    console.print(line, markup=False, soft_wrap=True)


@cache
def say_once(line: str) -> None:
    """The same, where one process comes to it again and again."""
    say(line)


@contextmanager
def stage(what: str, total: int, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[int | float], None]]:
    """Yields a function that is told how many more of ``total`` are done. ``clock`` gives seconds."""
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
    """How far a stage is, told in lines. What is done first may have been there already: how long the rest takes, what follows says."""

    what: str
    total: int
    clock: Callable[[], float]
    started: float
    due: float = FIRST
    done: float = 0.0
    first: tuple[float, float] | None = None  # when something was done for the first time, and how much

    def hear(self, done: int | float) -> None:
        """So much more is done; written where a line is due."""
        passed = self.clock() - self.started
        self.done += done
        self.first = self.first or (passed, self.done)
        if passed < self.due:
            return
        while self.due <= passed:
            self.due *= 2
        say(f"{self.what}: {self.done:.0f} of {self.total}{self._left(passed, *self.first)}")

    def _left(self, passed: float, since: float, before: float) -> str:
        """How long the rest takes at the pace so far."""
        if self.done == before:  # nothing since
            since = before = 0.0
        if not before < self.done < self.total or self.done < _TELLING * self.total:
            return ""
        seconds = (passed - since) / (self.done - before) * (self.total - self.done)
        return f", about {_duration(seconds)} left"


_TELLING = 0.02  # of the work: before that, the pace says nothing


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
