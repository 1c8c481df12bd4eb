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
# What a nat of drift (of the first token, or a token of what is kept) counts, in shares of the target.
WEIGHTS: Mapping[Preference, float] = MappingProxyType({"removal": 0.5, "balanced": 2.0, "quality": 8.0})


@dataclass(frozen=True)
class Point:
    """One edit, as it was measured on val prompts; less is better of each.

    ``target_left``: share of the target that is still withheld, 0 to 1. ``keep_kl``: divergence from the unedited model along its
    own replies to what should stay, nats a token. ``kl`` and ``kl_sequence``: the same on harmless prompts that it answers, of the
    first token, and a token along its replies. ``edits``: the sum of the strengths.
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

    def cost(self, weight: float) -> Fraction:
        """The share left and the weighted drift, exact: rounding would make ties where there are none."""
        return Fraction(self.target_left) + Fraction(weight) * self.moved

    @property
    def moved(self) -> Fraction:
        """The drift, of what is kept and of the first token, nats."""
        return Fraction(self.keep_kl) + Fraction(self.kl)


def pareto(points: Sequence[Point]) -> list[bool]:
    """Of each point whether it is on the front: finite, and dominated by no other. Equal points are on it together."""
    finite = [point for point in points if point.finite]
    return [point.finite and not any(other.dominates(point) for other in finite) for point in points]


def prefer(points: Sequence[Point], how: Preference, max_kl: float | None = None) -> tuple[int, list[str]]:
    """Which point of the front costs least, and what had to be relaxed for it, in words.

    Only points with a ``kl`` of at most ``max_kl`` are looked at; where there is none, those of the smallest. The cost is the share
    left and ``WEIGHTS`` times the drift; of equals the fewest edits are taken. Raises InputError where no point is finite.
    """
    on_front = [i for i, on in enumerate(pareto(points)) if on]
    if not on_front:
        raise InputError("no edit that was tried leaves the model's outputs finite; try --dtype float32")
    within = [i for i in on_front if max_kl is None or points[i].kl <= max_kl]
    relaxed: list[str] = []
    if not within:
        least = min(points[i].kl for i in on_front)
        within = [i for i in on_front if points[i].kl == least]
        relaxed.append(f"no edit has a first-token KL of at most {max_kl:g} nats: the one with the least, {least:.3g}, is taken")
    return min(within, key=lambda i: (points[i].cost(WEIGHTS[how]), points[i].edits, i)), relaxed
