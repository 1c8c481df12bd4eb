"""Paired yes-or-no outcomes of prompts in clusters: did the rate fall, and by how much at most?

The prompts of a topic change together, so a test that treats them as independent is overconfident. Here whole clusters are the
observations. If every cluster is a single prompt, the results are McNemar's exact test and Tango's bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm, t

from abliterate.measures.parts.paired import Unit
from abliterate.measures.statistics import mcnemar, score_upper_bound

# A bound assumes at least this correlation of changes within a cluster, because a few changed pairs can't show how changes cluster. The
# prompts of a topic are one question in other words and languages; the prompts of a category are different requests. scripts/bench
# statistics measures up to which true correlation the tests keep their level.
LEAST_CORRELATION: Mapping[Unit, float] = MappingProxyType({"topic": 0.45, "category": 0.2, "prompt": 0.0})
FEWEST = 5  # the fewest clusters of equal size that allow a bound


@dataclass(frozen=True)
class Pairs:
    """For each cluster, the number of pairs (``sizes``), of pairs that hold only before (``fell``), and of pairs that hold only after
    (``rose``). ``unit``: what a cluster is."""

    sizes: NDArray[np.int64]
    fell: NDArray[np.int64]
    rose: NDArray[np.int64]
    unit: Unit = "topic"

    @classmethod
    def of(cls, before: Sequence[bool], after: Sequence[bool], clusters: Sequence[str], unit: Unit = "topic") -> Pairs:
        """From outcomes before and after, and the name of each pair's cluster. Raises ValueError if the lengths differ."""
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
        """The number of pairs."""
        return int(self.sizes.sum())

    @property
    def changed(self) -> tuple[int, int]:
        """How many pairs hold only before, and only after."""
        return int(self.fell.sum()), int(self.rose.sum())

    @property
    def clusters(self) -> int:
        return len(self.sizes)

    @property
    def clustered(self) -> bool:
        """Whether any cluster has more than one pair."""
        return self.clusters < self.n

    def p_value(self) -> float:
        """Two-sided exact p-value of the hypothesis that whole clusters change in either direction with the same chance.

        Each cluster's net fall keeps its size and takes either sign (Fisher's randomisation test). The result is the share of all sign
        patterns whose sum is at least as far from zero as the observed one, computed exactly. 1 if only one cluster changed.
        """
        net = self.fell - self.rose
        net = net // max(1, int(np.gcd.reduce(net)))  # divide by the common factor; it doesn't change the test
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
        """One-sided upper bound (level 1 - alpha) of the fall: share before minus share after.

        Tango's score interval (1998), with the standard error widened by the design effect of the clusters: the variance between them
        (Obuchowski 1998) over that of single pairs, or the design effect that ``LEAST_CORRELATION`` implies, whichever is larger. The
        quantile is that of t with ``alike`` - 1 degrees of freedom instead of the normal one. 1, which claims nothing, if there are too few
        clusters for a bound. Raises ValueError if there are no pairs.
        """
        if self.n == 0:
            raise ValueError("no pairs")
        return score_upper_bound(*self.changed, self.n, self._quantile(alpha, self._design_effect()))

    def rise_bound(self, alpha: float = 0.05) -> float:
        """The same bound for the rise: share after minus share before."""
        return replace(self, fell=self.rose, rose=self.fell).fall_bound(alpha)

    def unmoved_bound(self, alpha: float = 0.05) -> float:
        """The bound if no pair had changed: the smallest that these clusters can show."""
        return score_upper_bound(0, 0, self.n, self._quantile(alpha, 1.0))

    @property
    def alike(self) -> float:
        """The effective number of clusters of equal size: n² / Σ size² (Kish 1965)."""
        return float(self.n**2 / (self.sizes**2).sum())

    def _design_effect(self) -> float:
        """How much larger the variance of the net fall is than with independent pairs, from the spread between clusters; 1 if the spread
        can't be estimated."""
        n, net = self.n, self.fell - self.rose
        single = float((self.fell + self.rose).sum() - net.sum() ** 2 / n)
        if self.clusters < 2 or single <= 0:
            return 1.0
        spread = float(((net - self.sizes * (net.sum() / n)) ** 2).sum())
        return self.clusters / (self.clusters - 1) * spread / single

    def _quantile(self, alpha: float, seen: float) -> float:
        """The distance of the bound, in standard errors of independent pairs; infinite if there are too few clusters."""
        if not self.clustered:
            return _quantile_of(1 - alpha, math.inf)
        if self.clusters < 2:
            return math.inf
        quantile = _quantile_of(1 - alpha, self.alike - 1)
        left = 1 - quantile**2 / self.alike  # as in any score test, the tried fall adds to the spread between clusters
        if not left > 0:
            return math.inf
        assumed = 1 + LEAST_CORRELATION[self.unit] * (self.n / self.alike - 1)
        return quantile * math.sqrt(max(assumed, seen / left))


@lru_cache(maxsize=64)
def _quantile_of(share: float, degrees: float) -> float:
    """The quantile of t; with infinite degrees of freedom, of the normal distribution."""
    return float(norm.ppf(share) if math.isinf(degrees) else t.ppf(share, degrees))
