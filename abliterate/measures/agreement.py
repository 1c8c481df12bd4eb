"""How far a judge can be trusted: Cohen's kappa, and a rate corrected for the judge's known errors."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa with its large-sample standard error and interval, over ``n`` pairs of labels."""

    kappa: float
    se: float
    low: float
    high: float
    n: int


def cohens_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Agreement beyond chance of two judges' labels of the same things; None where it is not defined."""
    found = kappa(pairs)
    return None if found is None else found.kappa


def kappa(pairs: Sequence[tuple[Hashable, Hashable]], confidence: float = 0.95) -> Kappa | None:
    """Cohen's kappa (Cohen 1960) of pairs of labels; None without pairs, and where both judges only ever give one and the same label.

    The standard error is that of Fleiss, Cohen and Everitt 1969, Psychological Bulletin 72:323, the one that doesn't assume
    kappa = 0.
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
    # how each cell moves kappa: agreement counts 1, and every cell adds to the chance of agreeing by its margins
    slope = np.eye(len(names)) - (1 - value) * (columns[:, None] + rows[None, :])
    variance = float((p * slope**2).sum()) - (value - chance * (1 - value)) ** 2
    se = math.sqrt(max(variance, 0.0) / n) / (1 - chance)
    half = float(norm.ppf((1 + confidence) / 2)) * se
    return Kappa(value, se, max(-1.0, value - half), min(1.0, value + half), n)


def corrected_rate(
    k: int, n: int, found: int, true: int, spared: int, false: int, confidence: float = 0.95
) -> tuple[float, tuple[float, float]] | None:
    """What share truly is, where a judge with known errors found k of n; and its interval. None where it can't be told: without
    an n, or where the judge is no better than chance.

    Of ``true`` ones the judge is known to have found ``found`` (sensitivity), of ``false`` ones to have spared ``spared``
    (specificity). The rate is that of Rogan and Gladen 1978, American Journal of Epidemiology 107:71, cut to 0 and 1. The interval
    also carries the uncertainty of both: delta method on counts with successes and failures added, shifted (Lang and Reiczigel
    2014, Preventive Veterinary Medicine 113:13). Raises ValueError for what is no proportion.
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
    """A proportion with ``added`` observations more, half of them successes, and its variance."""
    p = (k + added / 2) / (n + added)
    return p, p * (1 - p) / (n + added)


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))
