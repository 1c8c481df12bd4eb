"""One bar per set and model, before and after, with the rates beside it; and the worth of the answers in a line per set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from abliterate.files import Interval
from abliterate.measures.parts.rates import Figures, Rate
from abliterate.measures.parts.sets import SetEntry, Side, sides
from abliterate.measures.summary import rate
from abliterate.outcomes.worth.records import Worth
from abliterate.report.bars.kinds import KINDS, WORTHS_READ, Kind, counts
from abliterate.report.tree.report import Report

_ROLES = (
    ("target", "should go", ("target",)),
    ("keep", "must stay", ("keep",)),
    ("answered", "should be answered", ("baseline", "harmless", "borderline")),
    ("audited", "asked", ("audited",)),
)
_BESIDE: tuple[Worth, ...] = ("informative", "invented")  # worths whose rate stands beside the bar
_NARROWEST, _CHARACTER = 340, 7.5  # pixels: of a bar on a wide screen, and of a character on it


@dataclass(frozen=True)
class Part:
    """The replies of one kind as a part of a bar: their count, where it starts and its share, in per cent."""

    kind: Kind
    k: int
    start: float
    share: float

    @property
    def middle(self) -> float:
        return self.start + self.share / 2

    @property
    def is_named(self) -> bool:
        """Whether its name fits into it, beside the count."""
        return self.fits(self.kind.title)

    def fits(self, name: str) -> bool:
        """Whether a name fits into it, beside the count."""
        return self.share / 100 * _NARROWEST > _CHARACTER * (len(name) + len(str(self.k)) + 2)

    @property
    def is_counted(self) -> bool:
        """Whether its count fits into it."""
        return self.share / 100 * _NARROWEST > _CHARACTER * (len(str(self.k)) + 1)


@dataclass(frozen=True)
class Bar:
    """The replies of one model to a set. ``rates``: those beside the bar, by what they are of. ``bounds``: the 95 % interval of the first
    one, in per cent of the bar, which begins with what it counts."""

    side: Side
    n: int
    parts: Sequence[Part]
    rates: Sequence[tuple[str, Rate]]
    bounds: Interval | None


@dataclass(frozen=True)
class SetBars:
    """The bars of one set, base first."""

    name: str
    role: str
    n: int
    bars: Sequence[Bar]


@dataclass(frozen=True)
class BarGroup:
    """The sets of which ``title`` says the same: what should come of them."""

    key: str
    title: str
    sets: Sequence[SetBars]


def bar_groups(report: Report) -> list[BarGroup]:
    """A group for each role that has sets."""
    found = [
        BarGroup(key, title, [_set(name, entry) for name, entry in report.sets.items() if entry.role in roles])
        for key, title, roles in _ROLES
    ]
    return [group for group in found if group.sets]


def kinds_there(groups: Sequence[BarGroup]) -> list[Kind]:
    """The kinds that a bar has."""
    there = {part.kind for group in groups for each in group.sets for bar in each.bars for part in bar.parts}
    return [kind for kind in KINDS if kind in there]


def _set(name: str, entry: SetEntry) -> SetBars:
    found = list(sides(entry))
    broken = any(figures.degenerate.k for _, figures in found)
    valued = any(figures.worth for _, figures in found)
    return SetBars(name, entry.role, entry.n, [_bar(side, entry, figures, broken, valued) for side, figures in found])


def _bar(side: Side, entry: SetEntry, figures: Figures, broken: bool, valued: bool) -> Bar:
    first = figures.rate(entry.measure)
    rates: list[tuple[str, Rate]] = [(entry.measure, first)]
    if valued and figures.substance:
        # Of all prompts with facts, answered or not: an edit changes how many are answered, so shares of the answers can't be compared.
        rates += [(name, rate(figures.worth.of(name).k if figures.worth else 0, figures.substance.n)) for name in _BESIDE]
    if broken:
        rates.append(("broken", figures.degenerate))
    total, judged = figures.outcomes.total, figures.outcomes.judged
    bounds = None if first.ci95 is None else (100 * first.ci95[0] * judged / total, 100 * first.ci95[1] * judged / total)
    return Bar(side, total, list(_parts(figures)), rates, bounds)


def _parts(figures: Figures) -> Iterator[Part]:
    total, at = figures.outcomes.total, 0
    for kind, k in counts(figures).items():
        if k:
            yield Part(kind, k, 100 * at / total, 100 * k / total)
            at += k


def worth_lines(report: Report, after: str) -> list[str]:
    """What the answers are worth, a line per set with facts. ``after``: the name of the second model."""
    lines = []
    for name, entry in report.sets.items():
        said = [_worth(figures, (after if side == "edited" else side) if report.two_models else "") for side, figures in sides(entry)]
        if any(said):
            lines.append(f"{name}: {'; '.join(filter(None, said))}.")
    return lines


def _worth(figures: Figures, model: str) -> str | None:
    """The worth of one model's answers in words; None if no answer has one."""
    if figures.worth is None:
        return None
    n = figures.worth.invented.n
    counted = ", ".join(f"{figures.worth.of(name).k} {name}" for name in WORTHS_READ)
    return f"{model}, of {n} answers: {counted}" if model else f"of {n} answers: {counted}"
