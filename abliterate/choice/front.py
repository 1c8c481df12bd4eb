"""The front of edits: what each leaves of the target against what it moves of the rest, and which of them is preferred."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

from abliterate.errors import InputError

Preference = Literal["quality", "removal", "balanced"]
NOT_FINITE = "no edit that was tried leaves the model's outputs finite; try --dtype float32"
# What a nat of drift (of the first token, or a token of what is kept) counts, in shares of the target.
WEIGHTS: Mapping[Preference, float] = MappingProxyType({"removal": 0.5, "balanced": 2.0, "quality": 8.0})


@dataclass(frozen=True)
class Point:
    """One edit, as it was measured on val prompts; less is better of each.

    ``target_left``: how likely the target is still withheld, as a share of the unedited model's own likelihood: 1 where nothing was
    removed. ``keep_kl``: divergence from the unedited model along its own replies to what should stay, nats a token. ``kl`` and
    ``kl_sequence``: the same on harmless prompts that it answers, of the first token, and a token along its replies. ``edits``: the sum of
    the strengths.
    """

    target_left: float
    keep_kl: float
    kl: float
    kl_sequence: float
    edits: float

    @property
    def objectives(self) -> tuple[float, float, float]:
        """What the front is drawn in."""
        return self.target_left, self.keep_kl, self.kl

    @property
    def finite(self) -> bool:
        """Whether the edit left the model's outputs finite; one that did not is on no front."""
        return all(map(math.isfinite, self.objectives))

    def dominates(self, other: Point) -> bool:
        """Whether it is nowhere worse than another, and better somewhere."""
        pairs = list(zip(self.objectives, other.objectives, strict=True))
        return all(own <= its for own, its in pairs) and any(own < its for own, its in pairs)

    def cost(self, weight: float, max_kl: float | None = None) -> Fraction:
        """The share left, the weighted drift and what exceeds a bound, exact: rounding would make ties where there are none.

        Raises an arithmetic error unless the point is finite.
        """
        return Fraction(self.target_left) + Fraction(weight) * self.moved + exceeded(self.kl, max_kl)

    def removal(self, weight: float, max_kl: float | None = None) -> Fraction:
        """What it removes of the target for what it costs: 0 where nothing is removed, however little that costs.

        Raises an arithmetic error unless the point is finite.
        """
        left = Fraction(self.target_left)
        return (1 - left) / (1 + self.cost(weight, max_kl) - left)

    @property
    def moved(self) -> Fraction:
        """The drift, of what is kept and of the first token, nats."""
        return Fraction(self.keep_kl) + Fraction(self.kl)


def exceeded(kl: float, max_kl: float | None) -> Fraction:
    """How far a first-token KL lies above its bound, as a share of the bound; 0 within it, or without one.

    Each hundredth of the bound counts as much as a hundredth of the target left: what lies a little above it may still be the better
    edit, and what lies at twice the bound never is, if any within it moves as little otherwise.
    """
    return Fraction(0) if max_kl is None else max(Fraction(0), Fraction(kl) / Fraction(max_kl) - 1)


def pareto(points: Sequence[Point]) -> list[bool]:
    """Of each point whether it is on the front: finite, and dominated by no other. Equal points are on it together."""
    finite = [point for point in points if point.finite]
    return [point.finite and not any(other.dominates(point) for other in finite) for point in points]


def prefer(points: Sequence[Point], how: Preference, max_kl: float | None = None) -> tuple[int, list[str]]:
    """Which point of the front costs least, and in words what is to know of it where its ``kl`` is above ``max_kl``.

    The cost is the share left, ``WEIGHTS`` times the drift, and how far ``kl`` lies above ``max_kl`` (``exceeded``); of equals the
    fewest edits are taken. Raises InputError where no point is finite.
    """
    on_front = [i for i, on in enumerate(pareto(points)) if on]
    if not on_front:
        raise InputError(NOT_FINITE)
    order = sorted(on_front, key=lambda i: (points[i].cost(WEIGHTS[how], max_kl), points[i].edits, i))
    chosen = points[order[0]]
    if max_kl is None or chosen.kl <= max_kl:
        return order[0], []
    within = next((points[i] for i in order if points[i].kl <= max_kl), None)
    if within is None:
        return order[0], [f"no edit has a first-token KL of at most {max_kl:g} nats: the one that is taken has {chosen.kl:.3g}"]
    return order[0], [
        f"the edit that is taken has a first-token KL of {chosen.kl:.3g} nats, more than {max_kl:g}, and leaves "
        f"{100 * chosen.target_left:.1f} % of the target: the best one within {max_kl:g} leaves {100 * within.target_left:.1f} %"
    ]
