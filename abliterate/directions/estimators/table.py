"""The table of estimators: what each computes, and which input it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from abliterate.directions.estimators.difference_of_means import difference_of_means
from abliterate.directions.estimators.geometric_median import geometric_median
from abliterate.directions.estimators.lda import lda
from abliterate.directions.estimators.leace import leace
from abliterate.directions.estimators.probe import probe
from abliterate.directions.estimators.projected import projected
from abliterate.directions.estimators.sample import Sample
from abliterate.directions.estimators.subspace import RANK, category_differences, leading_rows
from abliterate.directions.estimators.winsorised import winsorised

Rows = Float[Tensor, "position layer_plus_1 d_model"] | Float[Tensor, "position layer_plus_1 k d_model"]


@dataclass(frozen=True)
class Estimator:
    """``function`` returns directions, last token first. If ``rank`` is above one, it returns at most that many orthogonal rows per place.

    ``per_prompt``: needs the vectors of each prompt, which exist only at the last position, so it returns that position only. Otherwise it
    needs only means and returns every position. ``harmless``: needs the harmless prompts too.
    """

    function: Callable[[Sample], Rows]
    per_prompt: bool = False
    harmless: bool = False
    rank: int = 1


def _projected(sample: Sample) -> Tensor:
    assert sample.harmless_mean is not None
    return projected(difference_of_means(sample.target_mean, sample.baseline_mean), sample.harmless_mean)


def _centred(sample: Sample, centre: Callable[[Tensor], Tensor]) -> Tensor:
    """The projected estimate with ``centre`` in place of the mean, at the last position."""
    assert sample.harmless is not None
    return projected(difference_of_means(centre(sample.target), centre(sample.baseline)), centre(sample.harmless))[None]


def _subspace(sample: Sample) -> Tensor:
    assert sample.harmless_mean is not None
    apart = category_differences(sample.target, sample.categories or ("",) * len(sample.target), sample.baseline_mean[0])
    away = sample.harmless_mean[0][..., None, :].expand_as(apart)
    return leading_rows(projected(apart, away))[None]


TABLE: Mapping[str, Estimator] = {
    "difference-of-means": Estimator(lambda s: difference_of_means(s.target_mean, s.baseline_mean)),
    "projected": Estimator(_projected, harmless=True),
    "winsorised": Estimator(lambda s: _centred(s, lambda vectors: winsorised(vectors).mean(0)), per_prompt=True, harmless=True),
    "geometric-median": Estimator(lambda s: _centred(s, geometric_median), per_prompt=True, harmless=True),
    "subspace": Estimator(_subspace, per_prompt=True, harmless=True, rank=RANK),
    "probe": Estimator(lambda s: s.by_layer(probe), per_prompt=True),
    "lda": Estimator(lambda s: s.by_layer(lda), per_prompt=True),
    "leace": Estimator(lambda s: s.by_layer(leace), per_prompt=True),
}
