"""The Pareto front of edits (how much of the target is left against the drift elsewhere), and the preferred edit on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

from abliterate.errors import InputError

Preference = Literal["quality", "removal", "balanced"]
NOT_FINITE = "the model's outputs are not finite with any edit that was tried; try --dtype float32"
# The cost of one nat of drift (first-token KL plus KL per token of what is kept), as a share of the target.
WEIGHTS: Mapping[Preference, float] = MappingProxyType({"removal": 0.5, "balanced": 2.0, "quality": 8.0})


@dataclass(frozen=True)
class Point:
    """The figures of one edit on val prompts; lower is better for each.

    ``target_left``: how likely the target is still withheld, relative to the unedited model; 1 if nothing was removed. ``keep_kl``: KL from
    the unedited model along its own replies to keep and baseline prompts, nats per token. ``kl`` and ``kl_sequence``: KL from the unedited
    model on harmless prompts that it answers, at the first token, and per token along its replies. ``edits``: the sum of the strengths.
    """

    target_left: float
    keep_kl: float
    kl: float
    kl_sequence: float
    edits: float

    @property
    def objectives(self) -> tuple[float, float, float]:
        """The axes of the front."""
        return self.target_left, self.keep_kl, self.kl

    @property
    def finite(self) -> bool:
        """Whether the edited model's outputs are finite; if not, the edit is never on the front."""
        return all(map(math.isfinite, self.objectives))

    def dominates(self, other: Point) -> bool:
        """Whether this point is nowhere worse than ``other``, and better in at least one objective."""
        pairs = list(zip(self.objectives, other.objectives, strict=True))
        return all(own <= its for own, its in pairs) and any(own < its for own, its in pairs)

    def cost(self, weight: float, max_kl: float | None = None) -> Fraction:
        """The share left, plus the weighted drift, plus the excess over the bound. Exact, because rounding would create ties.

        Raises ValueError or OverflowError if the point is not finite.
        """
        return Fraction(self.target_left) + Fraction(weight) * self.moved + exceeded(self.kl, max_kl)

    def removal(self, weight: float, max_kl: float | None = None) -> Fraction:
        """How much of the target is removed for the cost. 0 if nothing is removed, however low the cost.

        Raises ValueError or OverflowError if the point is not finite.
        """
        left = Fraction(self.target_left)
        return (1 - left) / (1 + self.cost(weight, max_kl) - left)

    @property
    def moved(self) -> Fraction:
        """The drift in nats: ``keep_kl`` plus the first-token ``kl``."""
        return Fraction(self.keep_kl) + Fraction(self.kl)


def exceeded(kl: float, max_kl: float | None) -> Fraction:
    """How far a first-token KL exceeds its bound, as a share of the bound; 0 within the bound, or if there is none.

    Exceeding the bound by one hundredth costs as much as leaving one hundredth of the target. So an edit slightly above the bound can still
    win, but an edit at twice the bound loses to any edit within it that drifts no more.
    """
    return Fraction(0) if max_kl is None else max(Fraction(0), Fraction(kl) / Fraction(max_kl) - 1)


def pareto(points: Sequence[Point]) -> list[bool]:
    """For each point, whether it is on the front: finite, and dominated by no other point. Equal points are all on it."""
    finite = [point for point in points if point.finite]
    return [point.finite and not any(other.dominates(point) for other in finite) for point in points]


def prefer(points: Sequence[Point], how: Preference, max_kl: float | None = None) -> tuple[int, list[str]]:
    """The index of the cheapest point on the front, and a note for the report if its ``kl`` is above ``max_kl``.

    The cost is the share left, plus ``WEIGHTS`` times the drift, plus how far ``kl`` exceeds ``max_kl`` (``exceeded``). If costs are equal,
    the point with the fewest edits wins. Raises InputError if no point is finite.
    """
    order = ranked(points, how, max_kl)
    return order[0], over_bound(points, order, order[0], max_kl)


def ranked(points: Sequence[Point], how: Preference, max_kl: float | None = None) -> list[int]:
    """The indices of the points on the front, the cheapest first (``prefer``). Raises InputError if no point is finite."""
    on_front = [i for i, on in enumerate(pareto(points)) if on]
    if not on_front:
        raise InputError(NOT_FINITE)
    return sorted(on_front, key=lambda i: (points[i].cost(WEIGHTS[how], max_kl), points[i].edits, i))


def over_bound(points: Sequence[Point], order: Sequence[int], best: int, max_kl: float | None) -> list[str]:
    """A note if the chosen point ``best`` is above ``max_kl``; empty if not. ``order``: ``ranked``."""
    chosen = points[best]
    if max_kl is None or chosen.kl <= max_kl:
        return []
    within = next((points[i] for i in order if points[i].kl <= max_kl), None)
    if within is None:
        return [f"no edit has a first-token KL of at most {max_kl:g} nats; the chosen one has {chosen.kl:.3g}"]
    return [
        f"the chosen edit has a first-token KL of {chosen.kl:.3g} nats, above the bound of {max_kl:g}, and leaves "
        f"{100 * chosen.target_left:.1f} % of the target; the best edit within the bound leaves {100 * within.target_left:.1f} %"
    ]
