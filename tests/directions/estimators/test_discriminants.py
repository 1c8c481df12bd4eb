"""Probe, LDA and LEACE, against plain solutions of what they minimise."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

from abliterate.directions.estimators.covariance import shrunk_covariance
from abliterate.directions.estimators.lda import lda
from abliterate.directions.estimators.leace import leace
from abliterate.directions.estimators.probe import PENALTY, probe

ALL = pytest.mark.parametrize("estimator", [probe, lda, leace], ids=lambda f: f.__name__)
SIZES = pytest.mark.parametrize(("prompts", "width"), [(12, 40), (60, 10)], ids=["fewer prompts than dimensions", "more"])


def _sets(prompts: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets that differ along the first axis; the second axis varies most, and they differ a little along it."""
    draw = torch.Generator().manual_seed(seed)
    scale = torch.ones(width, dtype=torch.float64)
    scale[1] = 10.0
    target, baseline = (torch.randn(prompts, width, generator=draw, dtype=torch.float64) * scale + 5 for _ in range(2))
    target[:, 0] += 2.0
    target[:, 1] += 2.0
    return target, baseline


def _ledoit_wolf(centred: torch.Tensor) -> torch.Tensor:
    """As the paper writes it, with every matrix in full."""
    n, d = centred.shape
    s = centred.T @ centred / n
    mean = s.trace() / d
    away = (s - mean * torch.eye(d)).square().sum()
    noise = sum((torch.outer(x, x) - s).square().sum() for x in centred) / n**2
    share = float(min(noise, away) / away)
    return (1 - share) * s + share * mean * torch.eye(d, dtype=s.dtype)


@SIZES
def test_the_shrunk_covariance_is_ledoit_and_wolfs(prompts: int, width: int) -> None:
    centred = _sets(prompts, width)[0]
    centred = centred - centred.mean(0)
    full, found = _ledoit_wolf(centred), shrunk_covariance(centred)
    vector = torch.randn(width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    torch.testing.assert_close(found.power(1.0, vector), full @ vector)
    torch.testing.assert_close(found.power(-1.0, vector), torch.linalg.solve(full, vector))
    torch.testing.assert_close(found.power(-0.5, found.power(-0.5, vector)), torch.linalg.solve(full, vector))


@SIZES
def test_lda_solves_for_the_difference_of_means(prompts: int, width: int) -> None:
    target, baseline = _sets(prompts, width)
    within = torch.cat([target - target.mean(0), baseline - baseline.mean(0)])
    torch.testing.assert_close(_ledoit_wolf(within) @ lda(target, baseline), target.mean(0) - baseline.mean(0))


@SIZES
def test_leace_is_the_whitened_cross_covariance(prompts: int, width: int) -> None:
    target, baseline = _sets(prompts, width)
    both = torch.cat([target, baseline])
    values, vectors = torch.linalg.eigh(_ledoit_wolf(both - both.mean(0)))
    expected = vectors @ ((vectors.T @ (target.mean(0) - baseline.mean(0))) / values.sqrt())
    torch.testing.assert_close(leace(target, baseline), expected)


@SIZES
def test_the_probe_is_the_minimum_of_its_loss(prompts: int, width: int) -> None:
    target, baseline = _sets(prompts, width)
    both = torch.cat([target, baseline])
    centred = (both - both.mean(0)).numpy()
    size = float(np.square(centred).sum(1).mean())
    side = np.r_[np.ones(prompts), -np.ones(prompts)]

    def loss(weights: np.ndarray) -> float:
        margins = side * (centred @ weights[:-1] + weights[-1])
        return float(np.logaddexp(0, -margins).mean() + PENALTY / 2 * size * np.square(weights[:-1]).sum())

    best = scipy.optimize.minimize(loss, np.zeros(width + 1), method="BFGS", options={"gtol": 1e-8})
    found = probe(target, baseline).numpy()
    intercepts = scipy.optimize.minimize_scalar(lambda b: loss(np.r_[found, b]))
    assert intercepts.fun <= best.fun * (1 + 1e-6)
    assert np.linalg.norm(found - best.x[:-1]) < 1e-3 * np.linalg.norm(found)


@ALL
def test_discriminants_turn_away_from_what_varies(estimator: object) -> None:
    """The difference of means is as much along the noisy axis as along the one that tells the sets apart."""
    target, baseline = _sets(400, 10)
    found = estimator(target, baseline)  # type: ignore[operator]
    difference = target.mean(0) - baseline.mean(0)
    assert float(found[0].abs() / found[1].abs()) > 3 * float(difference[0].abs() / difference[1].abs())
    assert float(found[0]) > 0


@ALL
def test_sets_without_any_variance_have_no_direction(estimator: object) -> None:
    same = torch.full((6, 5), 2.0)
    found = estimator(same, same)  # type: ignore[operator]
    assert not found.any() and bool(torch.isfinite(found).all())


@ALL
def test_single_precision_in_single_precision_out(estimator: object) -> None:
    target, baseline = _sets(12, 40)
    found = estimator(target.float(), baseline.float())  # type: ignore[operator]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), estimator(target, baseline), rtol=1e-3, atol=1e-4)  # type: ignore[operator]
