"""Statistics of counts: Wilson intervals, the exact McNemar test, Holm's correction, non-inferiority bounds, the bootstrap of a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

_DRAWN = 1 << 21  # bootstrap values in memory at once
_ABOVE = 1e-10  # start the search for the bound this far above the observed drop


def wilson(k: int | float, n: int | float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion k / n (Wilson 1927). Raises ValueError unless 0 <= k <= n and n > 0."""
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"no proportion {k}/{n}")
    z = float(norm.ppf((1 + confidence) / 2))
    p = k / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if k == 0 else max(0.0, (centre - half) / scale)  # avoids rounding; in exact arithmetic both are equal
    return low, 1.0 if k == n else min(1.0, (centre + half) / scale)


def mcnemar(before_only: int, after_only: int) -> float:
    """Two-sided exact p-value that both discordant counts have the same chance (binomial test); 1 if there are none."""
    discordant = before_only + after_only
    return float(binomtest(before_only, discordant, 0.5).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's step-down procedure, in the order given (Holm 1979, Scandinavian Journal of Statistics 6:65).

    Rejecting adjusted p-values of at most alpha keeps the chance of any false rejection at alpha, however the tests depend on each other.
    Raises ValueError if a value is not a probability.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"no p-values: {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def discordant(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int]:
    """How many pairs hold only before, and only after."""
    pairs = list(zip(before, after, strict=True))
    return sum(b and not a for b, a in pairs), sum(a and not b for b, a in pairs)


def drop_upper_bound(before_only: int | float, after_only: int | float, n: int, alpha: float = 0.05) -> float:
    """One-sided upper bound (level 1 - alpha) of the drop p_before - p_after in paired data.

    Tango's score interval (Tango 1998, Statistics in Medicine 17:891), which keeps its level with small counts.
    """
    return score_upper_bound(before_only, after_only, n, float(norm.ppf(1 - alpha)))


def score_upper_bound(before_only: int | float, after_only: int | float, n: int, z: float) -> float:
    """The largest drop that is at most ``z`` standard errors above the observed one: Tango's bound with a given quantile.

    1 if ``z`` is infinite. Raises ValueError if there are no pairs.
    """
    if n <= 0:
        raise ValueError("no pairs")
    if math.isinf(z):
        return 1.0

    def excess(delta: float) -> float:
        return (before_only - after_only - n * delta) + z * math.sqrt(n * _variance(before_only, after_only, n, delta))

    if excess(1.0) >= 0:
        return 1.0
    above = (before_only - after_only) / n + _ABOVE  # exactly at the observed drop the excess may be zero, which is not the bound
    return float(brentq(excess, above, 1.0))


def rise_upper_bound(before_only: int | float, after_only: int | float, n: int, alpha: float = 0.05) -> float:
    """One-sided upper bound (level 1 - alpha) of the rise p_after - p_before in paired data."""
    return drop_upper_bound(after_only, before_only, n, alpha)


def _variance(b: int | float, c: int | float, n: int, delta: float) -> float:
    """2 q + delta (1 - delta) at the constrained maximum likelihood estimate q of P(after only), given the difference.

    Here P(before only) = q + delta.
    """
    a2 = -b - c + (2 * n - b + c) * delta
    a3 = -c * delta * (1 - delta)
    q = (-a2 + math.sqrt(max(a2 * a2 - 8 * n * a3, 0.0))) / (4 * n)
    return max(2 * q + delta - delta * delta, 0.0)


def bootstrap_mean(values: Sequence[float], confidence: float = 0.95, draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean. If all values are equal, both ends are that value. Raises ValueError if there are none."""
    if not values:
        raise ValueError("no values")
    data = np.asarray(values, dtype=np.float64)
    if (data == data[0]).all():
        return float(data[0]), float(data[0])
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWN // len(data))
    sizes = [min(at_once, draws - start) for start in range(0, draws, at_once)]
    means = np.concatenate([data[rng.integers(0, len(data), size=(rows, len(data)))].mean(1) for rows in sizes])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
