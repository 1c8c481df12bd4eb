"""Paired yes-or-no outcomes of prompts that come in clusters: did they fall, and by how much at most?

The prompts of a topic change sides together, so a test that counts each of them for itself is too sure. Here whole clusters are the
observations. Where each prompt is a cluster of its own, these are McNemar's exact test and Tango's bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm, t

from abliterate.measures.statistics import mcnemar, score_upper_bound

Unit = Literal["topic", "category", "prompt"]  # what a cluster is
# Within a cluster, the correlation of the changes that a bound reckons with at least: where few pairs change, the pairs themselves can't
# tell how they cluster. A topic's prompts are one question in other words and languages; a category's are different requests.
# scripts/bench statistics measures up to which true correlation the tests keep their level with it.
LEAST_CORRELATION: Mapping[Unit, float] = MappingProxyType({"topic": 0.45, "category": 0.2, "prompt": 0.0})
FEWEST = 5  # clusters of one size from which there is a bound


@dataclass(frozen=True)
class Pairs:
    """Of each cluster the number of pairs, of those that held before only (``fell``), and of those that hold after only (``rose``);
    ``unit`` is what a cluster is."""

    sizes: NDArray[np.int64]
    fell: NDArray[np.int64]
    rose: NDArray[np.int64]
    unit: Unit = "topic"

    @classmethod
    def of(cls, before: Sequence[bool], after: Sequence[bool], clusters: Sequence[str], unit: Unit = "topic") -> Pairs:
        """From outcomes before and after, pair by pair, and the name of each pair's cluster. Raises ValueError for unpaired samples."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
        sizes, fell, rose = np.zeros((3, len(numbers)), dtype=np.int64)
        for first, second, name in zip(before, after, clusters, strict=True):
            place = numbers[name]
            sizes[place] += 1
            fell[place] += first and not second
            rose[place] += second and not first
        return cls(sizes, fell, rose, unit)

    @property
    def n(self) -> int:
        """Pairs."""
        return int(self.sizes.sum())

    @property
    def changed(self) -> tuple[int, int]:
        """How many pairs held before only, and after only."""
        return int(self.fell.sum()), int(self.rose.sum())

    @property
    def clusters(self) -> int:
        return len(self.sizes)

    @property
    def clustered(self) -> bool:
        """Whether any cluster has more than one pair."""
        return self.clusters < self.n

    def p_value(self) -> float:
        """Two-sided exact p-value that whole clusters are as likely to change one way as the other.

        Each cluster's net fall keeps its size and takes either sign with the same chance (Fisher's randomisation test); the share of all
        sign patterns whose sum is as far from zero as the one seen, without drawing any. 1 with a single cluster that changed.
        """
        net = self.fell - self.rose
        net = net // max(1, int(np.gcd.reduce(net)))  # the unit doesn't matter
        weights = np.abs(net[net != 0])
        if weights.size == 0 or weights.max() == 1:
            return mcnemar(int((net > 0).sum()), int((net < 0).sum()))
        chances = np.ones(1)  # of the sums from -total to total, in steps of two
        for weight, count in zip(*np.unique(weights, return_counts=True), strict=True):
            steps = np.zeros(weight * count + 1)
            steps[::weight] = binom.pmf(np.arange(count + 1), count, 0.5)
            chances = np.convolve(chances, steps)
        sums = np.abs(2 * np.arange(chances.size) - (chances.size - 1))
        return min(1.0, float(chances[sums >= abs(int(net.sum()))].sum()))

    def fall_bound(self, alpha: float = 0.05) -> float:
        """One-sided upper bound (level 1 - alpha) of the fall, share before minus share after, for clusters of this kind.

        Tango's score interval (1998) with its standard error widened by the design effect of the clusters: the variance between them
        (Obuchowski 1998) over that of single pairs, or what ``LEAST_CORRELATION`` makes of it, whichever is more; and the quantile of t
        in place of the normal one, with one degree of freedom less than there would be clusters were they of one size. 1, which claims
        nothing, where there are too few clusters for any bound. Raises ValueError for no pairs.
        """
        if self.n == 0:
            raise ValueError("no pairs")
        return score_upper_bound(*self.changed, self.n, self._quantile(alpha, self._design_effect()))

    def rise_bound(self, alpha: float = 0.05) -> float:
        """The same of the rise: the fall seen from the other side."""
        return replace(self, fell=self.rose, rose=self.fell).fall_bound(alpha)

    def unmoved_bound(self, alpha: float = 0.05) -> float:
        """What the bounds would be had no pair changed: with these clusters nothing smaller can be shown."""
        return score_upper_bound(0, 0, self.n, self._quantile(alpha, 1.0))

    @property
    def alike(self) -> float:
        """How many clusters of one size would tell as much as these do: n² / Σ size² (Kish 1965)."""
        return float(self.n**2 / (self.sizes**2).sum())

    def _design_effect(self) -> float:
        """How much larger the variance of the net fall is than with independent pairs, by the spread between clusters; 1 where nothing
        is seen of it."""
        n, net = self.n, self.fell - self.rose
        single = float((self.fell + self.rose).sum() - net.sum() ** 2 / n)
        if self.clusters < 2 or single <= 0:
            return 1.0
        spread = float(((net - self.sizes * (net.sum() / n)) ** 2).sum())
        return self.clusters / (self.clusters - 1) * spread / single

    def _quantile(self, alpha: float, seen: float) -> float:
        """How many standard errors of independent pairs the bound lies away; infinite where the clusters are too few to tell."""
        if not self.clustered:
            return _quantile_of(1 - alpha, math.inf)
        if self.clusters < 2:
            return math.inf
        quantile = _quantile_of(1 - alpha, self.alike - 1)
        left = 1 - quantile**2 / self.alike  # the fall that is tried spreads the clusters too, as in any score test
        if not left > 0:
            return math.inf
        assumed = 1 + LEAST_CORRELATION[self.unit] * (self.n / self.alike - 1)
        return quantile * math.sqrt(max(assumed, seen / left))


@lru_cache(maxsize=64)
def _quantile_of(share: float, degrees: float) -> float:
    """Of t, which with degrees of freedom without end is the normal distribution."""
    return float(norm.ppf(share) if math.isinf(degrees) else t.ppf(share, degrees))
