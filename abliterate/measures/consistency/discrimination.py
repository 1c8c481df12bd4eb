"""Whether a score separates two kinds: the area under the ROC curve, with an interval over topics, and a bound with few false alarms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from abliterate.measures.clusters import too_few
from abliterate.measures.parts.consistency import Discrimination
from abliterate.measures.parts.rates import Rate
from abliterate.measures.summary import rate

_DRAWS, _BLOCK = 10_000, 1_000
FALSE_ALARMS = 0.05  # of what is true, the largest share that may lie below the bound: the level of all tests here


@dataclass(frozen=True)
class Scored:
    """A score of something whose kind is known, and the topic that it is about."""

    score: float
    true: bool
    cluster: str


@dataclass(frozen=True)
class Bound:
    """Scores below ``value`` count as low. ``false_alarms``: the true ones among these, of all true ones; ``caught``: of the others."""

    value: float
    false_alarms: Rate
    caught: Rate


def discrimination(scored: Sequence[Scored]) -> Discrimination | None:
    """The chance that a true one scores above another (ties count half), with the percentile interval over resampled topics (Davison and
    Hinkley 1997, section 3.8). None if one kind is missing."""
    counts = {kind: sum(each.true is kind for each in scored) for kind in (True, False)}
    if not all(counts.values()):
        return None
    both = np.stack([_counts(scored, kind) for kind in (True, False)])  # [kind, cluster, level]
    clusters = both.shape[1]
    auc = float(_areas(both.sum(1)[:, None])[0])
    return Discrimination(
        auc=auc,
        auc_ci95=_interval(both) if clusters > 1 else None,
        true=counts[True],
        others=counts[False],
        clusters=clusters,
        warning=too_few(clusters),
    )


def bound_of(scored: Sequence[Scored]) -> Bound | None:
    """The largest score below which at most ``FALSE_ALARMS`` of the true ones lie; None if none of the others lies below it."""
    true, others = ([each.score for each in scored if each.true is kind] for kind in (True, False))
    for value in sorted({each.score for each in scored}, reverse=True):
        missed, caught = (sum(score < value for score in scores) for scores in (true, others))
        if missed <= FALSE_ALARMS * len(true):
            return Bound(value, rate(missed, len(true)), rate(caught, len(others))) if caught else None
    return None


def _counts(scored: Sequence[Scored], kind: bool) -> NDArray[np.float64]:
    """How many of a kind each cluster has at each score, [cluster, level]; clusters and levels are those of both kinds."""
    clusters = {name: i for i, name in enumerate(dict.fromkeys(each.cluster for each in scored))}
    levels = {score: i for i, score in enumerate(sorted({each.score for each in scored}))}
    found = np.zeros((len(clusters), len(levels)))
    for each in scored:
        found[clusters[each.cluster], levels[each.score]] += each.true is kind
    return found


def _areas(both: NDArray[np.float64]) -> NDArray[np.float64]:
    """The area for each draw; ``both`` is [kind, draw, level]. NaN if a draw lacks a kind."""
    true, others = both
    below = np.cumsum(others, axis=1) - others / 2
    pairs = true.sum(1) * others.sum(1)
    found: NDArray[np.float64] = np.divide((true * below).sum(1), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return found


def _interval(both: NDArray[np.float64]) -> tuple[float, float] | None:
    rng = np.random.default_rng(0)
    clusters = both.shape[1]
    areas = []
    for _ in range(0, _DRAWS, _BLOCK):
        weights = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=_BLOCK)
        areas.append(_areas(np.stack([weights @ kind for kind in both])))
    there = np.concatenate(areas)
    there = there[~np.isnan(there)]
    if not len(there):
        return None
    low, high = np.quantile(there, [0.025, 0.975])
    return float(low), float(high)
