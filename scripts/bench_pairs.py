"""How often the paired tests over topics say what isn't so, and how often they show what is, on made-up data of which the truth is known.

Level: the fall is exactly the margin, and the keep test says that it is less. Power: nothing fell, and the test shows it. Three ways of
making pairs that change together, each with the same correlation of the differences (before minus after) within a cluster, so that no
test is fitted to one of them; prompts that withhold little, half and nearly all before; clusters alike, unlike, few and many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from abliterate.measures.pairs import Pairs
from abliterate.measures.parts.paired import Unit
from abliterate.measures.statistics import drop_upper_bound, mcnemar

CORRELATIONS = (0.0, 0.1, 0.3, 0.6)
UNLIKE = (72, 60, 50, 42, 36, 31, 27, 23, 20, 17, 14, 12, 10, 8, 6, 4)
SHAPES: dict[str, tuple[int, ...]] = {
    "30 of 6": (6,) * 30,
    "16 of 27": (27,) * 16,
    "16 of 4 to 72": UNLIKE,
    "12 of 4": (4,) * 12,
    "91 of 2": (2,) * 91,
    "1 of 100, 20 of 4": (100, *(4,) * 20),
    "100 of 4": (4,) * 100,
}
CATEGORIES = ("16 of 27", "16 of 4 to 72")  # shapes of sets that have no topics
_NODES, _WEIGHTS = hermegauss(80)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_FAR = 50.0  # deviations: nearly every chance is 0 or 1

Counts = tuple[NDArray[np.int64], NDArray[np.int64]]  # falls and rises by cluster


@dataclass(frozen=True)
class Setting:
    """The share that is withheld before, the share of prompts that rise whatever falls, and the margin."""

    base: float
    rises: float
    margin: float


SETTINGS = (Setting(0.1, 0.0, 0.05), Setting(0.5, 0.05, 0.05), Setting(0.9, 0.02, 0.05), Setting(0.9, 0.02, 0.1))
FEW = 0.002  # of all prompts, that change either way where a setting has no rises and nothing falls


@dataclass(frozen=True)
class Tested:
    """Of ``simulations`` data sets alike: how often a fall of the margin was called less, by clusters and by prompts (``alone``); how
    often that nothing fell was shown; and how often p was below 0.05 where nothing fell, both ways. All are shares."""

    shape: str
    way: str
    setting: Setting
    correlation: float
    simulations: int
    level: float
    level_alone: float
    power: float
    p_level: float
    p_level_alone: float


def rates(rng: np.random.Generator, sizes: NDArray[np.int64], fall: float, rise: float, base: float, correlation: float) -> Counts:
    """Each cluster has its own chances to fall and to rise, drawn from a Dirichlet distribution (of falls alone: the beta-binomial)."""
    share = np.array([fall, rise, 1 - fall - rise])
    chances = np.tile(share, (len(sizes), 1))
    if correlation:
        drawn = rng.gamma(np.maximum(share * (1 - correlation) / correlation, 1e-9), size=chances.shape) + 1e-300
        chances = drawn / drawn.sum(1, keepdims=True)
    return _drawn(rng, sizes, chances[:, 0], chances[:, 1])


def latent(rng: np.random.Generator, sizes: NDArray[np.int64], fall: float, rise: float, base: float, correlation: float) -> Counts:
    """Of each cluster, how likely it is withheld before, and how likely a withheld prompt of it falls, are probit-normal."""
    free = fall / base
    spread, moved = _spreads(free, rise, base, correlation)
    before = norm.cdf(norm.ppf(base) * math.sqrt(1 + spread**2) + spread * rng.standard_normal(len(sizes)))
    gone = norm.cdf(norm.ppf(free) * math.sqrt(1 + moved**2) + moved * rng.standard_normal(len(sizes)))
    return _drawn(rng, sizes, before * gone, (1 - before) * min(1.0, rise / (1 - base)))


def whole(rng: np.random.Generator, sizes: NDArray[np.int64], fall: float, rise: float, base: float, correlation: float) -> Counts:
    """Some clusters fall as a whole; in the others prompts change each for itself."""
    together = _together(fall, rise, correlation)
    alone = (fall - rise - together) / (1 - together) + rise
    falls, rises = _drawn(rng, sizes, np.full(len(sizes), alone), np.full(len(sizes), rise))
    at_once = rng.random(len(sizes)) < together
    return np.where(at_once, sizes, falls), np.where(at_once, 0, rises)


WAYS: dict[str, Callable[..., Counts]] = {"rates": rates, "latent": latent, "whole": whole}


def _drawn(rng: np.random.Generator, sizes: NDArray[np.int64], fall: NDArray[np.float64], rise: NDArray[np.float64]) -> Counts:
    falls = rng.binomial(sizes, np.clip(fall, 0, 1))
    return falls, rng.binomial(sizes - falls, np.clip(rise / np.maximum(1 - fall, 1e-12), 0, 1))


@cache
def _spreads(free: float, rise: float, base: float, correlation: float) -> tuple[float, float]:
    """How far apart clusters lie before, and their chances to fall, as deviations of probits, so that differences correlate by so much."""
    up, mean = min(1.0, rise / (1 - base)), base * free - rise
    wanted = correlation * (base * free + (1 - base) * up - mean**2)

    def excess(moved: float, before: float) -> float:
        both = before * _square(free, moved) - 2 * up * free * (base - before) + up**2 * (1 - 2 * base + before)
        return both - mean**2 - wanted

    for spread in (math.sqrt(correlation / 2) * 2**step for step in range(6)):
        before = _square(base, spread)
        if excess(_FAR, before) > 0:
            return spread, float(brentq(excess, 0.0, _FAR, (before,))) if excess(0.0, before) < 0 else 0.0
    return 0.0, 0.0  # each prompt for itself


def _square(mean: float, spread: float) -> float:
    """The mean square of a probit-normal chance with this mean."""
    return float((_WEIGHTS * norm.cdf(norm.ppf(mean) * math.sqrt(1 + spread**2) + spread * _NODES) ** 2).sum())


def _together(fall: float, rise: float, correlation: float) -> float:
    """The share of clusters that fall as a whole, so that differences correlate by so much."""
    net = fall - rise

    def excess(share: float) -> float:
        alone = (net - share) / (1 - share) + rise
        between = share * (1 - share) * (1 - (alone - rise)) ** 2
        return between - correlation * (share + (1 - share) * (alone + rise) - net**2)

    most = (net + rise) / (1 + rise)  # then nothing falls for itself
    return float(brentq(excess, 0.0, most)) if correlation and excess(most) > 0 else most if correlation else 0.0


def tested(shape: str, way: str, setting: Setting, correlation: float, simulations: int, seed: int = 0) -> Tested:
    """One kind of data."""
    place = (list(SHAPES).index(shape), list(WAYS).index(way), SETTINGS.index(setting), round(100 * correlation))
    rng, sizes = np.random.default_rng([seed, *place]), np.array(SHAPES[shape])
    unit: Unit = "category" if shape in CATEGORIES else "topic"
    fall, rise = setting.margin + setting.rises, setting.rises
    at_margin = [Pairs(sizes, *WAYS[way](rng, sizes, fall, rise, setting.base, correlation), unit) for _ in range(simulations)]
    still = rise or FEW
    unmoved = [Pairs(sizes, *rates(rng, sizes, still, still, setting.base, correlation), unit) for _ in range(simulations)]
    return Tested(
        shape, way, setting, correlation, simulations,
        level=_share([_shown(found, setting.margin) for found in at_margin]),
        level_alone=_share([_shown_alone(found, setting.margin) for found in at_margin]),
        power=_share([_shown(found, setting.margin) for found in unmoved]),
        p_level=_share([found.p_value() < 0.05 for found in unmoved]),
        p_level_alone=_share([_mcnemar(*found.changed) < 0.05 for found in unmoved]),
    )  # fmt: skip


def _share(holds: Sequence[bool]) -> float:
    return sum(holds) / len(holds)


def _shown(found: Pairs, margin: float) -> bool:
    return _shown_alone(found, margin) and found.fall_bound() < margin  # which is never the lower one of the two bounds


def _shown_alone(found: Pairs, margin: float) -> bool:
    return _alone(*found.changed, found.n) < margin


_alone, _mcnemar = cache(drop_upper_bound), cache(mcnemar)


def measured(simulations: int) -> list[Tested]:
    """Every shape, way, setting and correlation."""
    return [
        tested(shape, way, setting, correlation, simulations)
        for shape in SHAPES
        for way in WAYS
        for setting in SETTINGS
        for correlation in CORRELATIONS
    ]


def table(found: Sequence[Tested]) -> str:
    """For people: a line a shape, of each correlation the mean over ways and settings, in brackets the highest."""
    head = " | ".join(f"{c:g}" for c in CORRELATIONS)
    lines = [f"| {title} | {head} |" for title in ("", "clusters")][1:]
    parts = [
        ("level of the bound, a fall of the margin called less: mean (highest)", "level", True),
        ("the same, each prompt counted for itself", "level_alone", True),
        ("power of the bound at a margin of 5 points, nothing fell: mean", "power", False),
        ("level of McNemar's p over clusters: mean (highest)", "p_level", True),
        ("the same, each prompt counted for itself", "p_level_alone", True),
    ]
    said = []
    for title, key, highest in parts:
        said += ["", f"{title[0].upper()}{title[1:]}:", "", *lines, "|---" * (1 + len(CORRELATIONS)) + "|"]
        said += [f"| {shape} | {' | '.join(_cells(found, shape, key, highest))} |" for shape in SHAPES]
    return "\n".join(said)


def _cells(found: Sequence[Tested], shape: str, key: str, highest: bool) -> list[str]:
    cells = []
    for correlation in CORRELATIONS:
        alike = [t for t in found if (t.shape, t.correlation) == (shape, correlation) and (highest or t.setting.margin == 0.05)]
        values = [100 * getattr(t, key) for t in alike]
        cells.append(f"{np.mean(values):.1f} ({max(values):.1f})" if highest else f"{np.mean(values):.0f}")
    return cells
