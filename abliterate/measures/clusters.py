"""Rates of prompts that come in clusters (paraphrases and translations of one topic), with intervals that account for the clusters.

The prompts of a topic are withheld or answered together more often than by chance, so an interval that treats them as independent is too
narrow. Here whole clusters are drawn with replacement (Davison and Hinkley 1997, section 3.8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from abliterate.measures.statistics import drop_upper_bound, wilson

# With fewer clusters the 95 % interval covers the true rate less than 93 % of the time (docs/benchmarks.md, scripts/bench statistics).
MIN_CLUSTERS = 30
_BLOCK = 1 << 20  # clusters drawn at once


@dataclass(frozen=True)
class Clustered:
    """An interval and the number of clusters that it is based on."""

    low: float
    high: float
    clusters: int


def cluster_rate(
    holds: Sequence[bool] | Sequence[float], clusters: Sequence[str], confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Clustered:
    """Percentile interval of the share of ``holds``, or of the mean of shares, resampling whole clusters.

    If all clusters have the same rate, there is no spread to resample; each cluster then counts as one observation of a Wilson interval.
    Raises ValueError for fewer than two clusters.
    """
    sums, sizes = _by_cluster(np.asarray(holds, dtype=np.float64), clusters)
    if _all_alike(sums, sizes):
        low, high = wilson(len(sums) * float(sums.sum()) / float(sizes.sum()), len(sums), confidence)
        return Clustered(low, high, len(sums))
    return Clustered(*_interval(sums, sizes, confidence, draws, seed), len(sums))


def cluster_difference(
    first: Sequence[bool],
    second: Sequence[bool],
    clusters: Sequence[str],
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Clustered:
    """Percentile interval of a paired difference of rates, share of ``first`` minus share of ``second``, resampling whole clusters.

    If all clusters have the same difference, each counts as one pair of Tango's score interval. Raises ValueError for fewer than two
    clusters or for samples of different lengths.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(one) != len(other):
        raise ValueError(f"no pairs: {len(one)} and {len(other)}")
    sums, sizes = _by_cluster(one - other, clusters)
    if _all_alike(sums, sizes):
        n, alpha = len(sums), (1 - confidence) / 2
        only_first, only_second = (n * float(np.mean(one - other == sign)) for sign in (1, -1))
        return Clustered(-drop_upper_bound(only_second, only_first, n, alpha), drop_upper_bound(only_first, only_second, n, alpha), n)
    return Clustered(*_interval(sums, sizes, confidence, draws, seed), len(sums))


def cluster_mean(
    values: Sequence[float], clusters: Sequence[str], least: float = 0.0, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Clustered:
    """Percentile interval of the mean of values from ``least`` to 1, resampling whole clusters.

    If all clusters have the same mean, each counts as one observation of a Wilson interval, which is wide enough for any values in these
    bounds with that mean (Bhatia and Davis 2000). Raises ValueError for fewer than two clusters.
    """
    data = (np.asarray(values, dtype=np.float64) - least) / (1 - least)
    places, count = _places(clusters, len(data))
    sums = np.bincount(places, weights=data, minlength=count).astype(np.float64)
    sizes = np.bincount(places, minlength=count)
    if np.allclose(sums / sizes, data.mean(), rtol=0, atol=1e-12):
        low, high = wilson(count * float(data.mean()), count, confidence)
    else:
        low, high = _interval(sums, sizes, confidence, draws, seed)
    return Clustered(least + (1 - least) * low, least + (1 - least) * high, count)


def few_mean(values: Sequence[float], observations: int, alike: int = 1, confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval of the mean of a few values from 0 to 1: Student's t, but never narrower than Wilson's with as many ``observations``, which
    holds if the values happen to be equal. None for fewer than two values.

    ``alike``: so many values may be one measured again (translations of a question), so that only one of them counts.
    """
    found = student_mean(values, alike, confidence=confidence)
    if found is None:
        return None
    low, high = wilson(float(np.mean(values)) * observations / alike, observations / alike, confidence)
    return min(low, found[0]), max(high, found[1])


def student_mean(
    values: Sequence[float], alike: int = 1, least: float = 0.0, most: float = 1.0, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Student's interval of the mean of a few values between ``least`` and ``most``; None for fewer than two. ``alike``: as above."""
    n = len(values) / alike
    if n < 2:
        return None
    data = np.asarray(values, dtype=np.float64)
    wide = float(t.ppf((1 + confidence) / 2, n - 1)) * float(data.std(ddof=1)) / np.sqrt(n)
    return max(least, float(data.mean()) - wide), min(most, float(data.mean()) + wide)


def too_few(clusters: int) -> str | None:
    """The warning for an interval based on this many clusters; None if there are enough."""
    if clusters >= MIN_CLUSTERS:
        return None
    if clusters < 2:
        return "all prompts belong to one cluster (topic): nothing can be said about others"
    return f"only {clusters} clusters (topics): with fewer than {MIN_CLUSTERS}, the interval covers the truth less than 93 % of the time"


def _by_cluster(values: NDArray[np.float64], clusters: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The sum of the values, and the number of members, of each cluster."""
    places, count = _places(clusters, len(values))
    sums = np.zeros(count)
    np.add.at(sums, places, values)
    return sums, np.bincount(places).astype(np.int64)


def _places(clusters: Sequence[str], members: int) -> tuple[NDArray[np.int64], int]:
    """The number of each member's cluster, and how many clusters there are."""
    if members != len(clusters):
        raise ValueError(f"{members} values in {len(clusters)} clusters' members")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    if len(numbers) < 2:
        raise ValueError("fewer than two clusters")
    return np.array([numbers[name] for name in clusters]), len(numbers)


def _all_alike(sums: NDArray[np.float64], sizes: NDArray[np.int64]) -> bool:
    return bool(np.allclose(sums * sizes.sum(), sums.sum() * sizes, rtol=1e-9, atol=1e-9))


def _interval(sums: NDArray[np.float64], sizes: NDArray[np.int64], confidence: float, draws: int, seed: int) -> tuple[float, float]:
    """Percentiles of the ratio of sums, over draws with replacement of as many clusters as there are."""
    rng = np.random.default_rng(seed)
    count = len(sums)
    means: list[NDArray[np.float64]] = []
    left = draws
    while left:
        now = min(left, max(1, _BLOCK // count))
        drawn = rng.integers(0, count, size=(now, count))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
        left -= now
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
