"""How reliable a judge is: Cohen's kappa, and a rate corrected for the judge's known errors."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa with its large-sample standard error and interval, from ``n`` pairs of labels."""

    kappa: float
    se: float
    low: float
    high: float
    n: int


def cohens_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Agreement beyond chance of two judges' labels for the same items; None if it is not defined."""
    found = kappa(pairs)
    return None if found is None else found.kappa


def kappa(pairs: Sequence[tuple[Hashable, Hashable]], confidence: float = 0.95) -> Kappa | None:
    """Cohen's kappa (Cohen 1960) of pairs of labels; None without pairs, or if both judges always give one and the same label.

    The standard error is from Fleiss, Cohen and Everitt 1969, Psychological Bulletin 72:323, in the form that doesn't assume kappa = 0.
    """
    names = {name: place for place, name in enumerate(dict.fromkeys(label for pair in pairs for label in pair))}
    if len(names) < 2:
        return None
    table = np.zeros((len(names), len(names)))
    for first, second in pairs:
        table[names[first], names[second]] += 1
    n = len(pairs)
    p = table / n
    rows, columns = p.sum(axis=1), p.sum(axis=0)
    observed, chance = float(np.trace(p)), float(rows @ columns)
    value = (observed - chance) / (1 - chance)
    # The derivative of kappa by each cell: diagonal cells add agreement, and every cell adds chance agreement through its margins.
    slope = np.eye(len(names)) - (1 - value) * (columns[:, None] + rows[None, :])
    variance = float((p * slope**2).sum()) - (value - chance * (1 - value)) ** 2
    se = math.sqrt(max(variance, 0.0) / n) / (1 - chance)
    half = float(norm.ppf((1 + confidence) / 2)) * se
    return Kappa(value, se, max(-1.0, value - half), min(1.0, value + half), n)


def corrected_rate(
    k: int, n: int, found: int, true: int, spared: int, false: int, confidence: float = 0.95
) -> tuple[float, tuple[float, float]] | None:
    """The true rate and its interval, if a judge with known errors found k of n. None if n is 0 or the judge is no better than chance.

    Of ``true`` labelled positives the judge found ``found`` (sensitivity); of ``false`` labelled negatives it spared ``spared``
    (specificity). The rate is that of Rogan and Gladen 1978, American Journal of Epidemiology 107:71, clipped to [0, 1]. The interval
    includes the uncertainty of sensitivity and specificity: delta method on counts with added successes and failures, shifted (Lang and
    Reiczigel 2014, Preventive Veterinary Medicine 113:13). Raises ValueError unless each pair of counts is a proportion.
    """
    for count, total in ((k, n), (found, true), (spared, false)):
        if not 0 <= count <= total:
            raise ValueError(f"no proportion {count}/{total}")
    if not (n and true and false) or found / true + spared / false <= 1:
        return None
    z = float(norm.ppf((1 + confidence) / 2))
    rate = _rogan_gladen(k / n, found / true, spared / false)
    p, var_p = _padded(k, n, z * z)
    se, var_se = _padded(found, true, 2.0)
    sp, var_sp = _padded(spared, false, 2.0)
    share = _rogan_gladen(p, se, sp)
    error = math.sqrt(var_p + share**2 * var_se + (1 - share) ** 2 * var_sp) / (se + sp - 1)
    centre = share + 2 * z * z * (share * var_se - (1 - share) * var_sp)
    return _unit(rate), (_unit(centre - z * error), _unit(centre + z * error))


def _rogan_gladen(rate: float, sensitivity: float, specificity: float) -> float:
    return (rate + specificity - 1) / (sensitivity + specificity - 1)


def _padded(k: int, n: int, added: float) -> tuple[float, float]:
    """A proportion after adding ``added`` observations, half of them successes, and its variance."""
    p = (k + added / 2) / (n + added)
    return p, p * (1 - p) / (n + added)


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))
