"""Winsorised vectors and geometric medians."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from abliterate.directions.estimators.geometric_median import geometric_median
from abliterate.directions.estimators.winsorised import winsorised


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 300), st.floats(0.01, 1.0), st.integers(0, 1000))
@example(274, 0.99999, 206)
def test_each_vector_is_clamped_at_the_quantile_of_its_own_sizes(width: int, quantile: float, seed: int) -> None:
    vectors = _draw(3, 2, width, seed=seed)
    bound = torch.quantile(vectors.abs().double(), quantile, dim=-1, keepdim=True).float()  # a rank in float32 is off by 1e-5
    torch.testing.assert_close(winsorised(vectors, quantile), vectors.clamp(-bound, bound))


def test_a_massive_coordinate_is_cut_back_and_the_rest_stays() -> None:
    vectors = _draw(5, 400)
    vectors[:, 7] = -3000.0
    found = winsorised(vectors)
    assert float(found[:, 7].abs().max()) < 5 and bool((found[:, 7] < 0).all())
    others = [i for i in range(400) if i != 7]
    assert float((found[:, others] - vectors[:, others]).abs().max()) < 1.5
    assert int((found != vectors).sum()) <= 5 * 2


def test_quantile_one_changes_nothing() -> None:
    assert torch.equal(winsorised(_draw(4, 9), 1.0), _draw(4, 9))


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 30), st.integers(1, 12), st.integers(0, 1000))
def test_no_point_has_a_smaller_summed_distance_than_the_median(points: int, width: int, seed: int) -> None:
    vectors = _draw(points, width, seed=seed).double()

    def summed(at: np.ndarray) -> float:
        return float((vectors - torch.as_tensor(at)).norm(dim=1).sum())

    found = geometric_median(vectors[:, None])[0].numpy()
    best = min(scipy.optimize.minimize(summed, start, method="BFGS").fun for start in (vectors.mean(0).numpy(), found))
    assert summed(found) <= best * (1 + 1e-6)


def test_the_median_on_a_line_of_odd_points_is_the_middle_one() -> None:
    points = torch.tensor([0.0, 1.0, 2.0, 50.0, 90.0])[:, None, None] * torch.tensor([3.0, 4.0])
    torch.testing.assert_close(geometric_median(points)[0], torch.tensor([6.0, 8.0]), atol=1e-4, rtol=0)


def test_points_that_coincide_with_the_estimate_are_no_trouble() -> None:
    cross = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])  # the mean, where it starts, is a point and the answer
    assert float(geometric_median(cross[:, None]).abs().max()) < 1e-6
    heavy = torch.cat([torch.zeros(6, 2), torch.tensor([[5.0, 1], [4, 4], [9, -2]])])
    assert float(geometric_median(heavy[:, None]).abs().max()) < 1e-4
    same = torch.full((4, 3, 5), 2.5)
    assert torch.equal(geometric_median(same), same[0])


def test_a_mean_on_a_point_that_is_not_the_median_is_left() -> None:
    points = torch.tensor([[0.0, 0], [1, 1], [1, -1], [1, 0.1], [-3, -0.1]])  # the mean is the first
    found = geometric_median(points[:, None].double())[0]
    pulls = points.double()[1:] - found
    distances = pulls.norm(dim=1)
    own = found.norm()
    assert float(own) > 1e-3
    gradient = (pulls / distances[:, None]).sum(0) - found / own
    assert float(gradient.norm()) < 1e-4


def test_one_far_off_prompt_moves_the_mean_but_hardly_the_median() -> None:
    vectors = _draw(41, 3, 16)
    vectors[0] = 1e4
    assert float(vectors.mean(0).norm(dim=-1).min()) > 900
    assert float(geometric_median(vectors).norm(dim=-1).max()) < 2


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_median_moves_and_scales_with_the_vectors(scale: float) -> None:
    vectors = _draw(20, 2, 6).double()
    torch.testing.assert_close(
        geometric_median(vectors * scale + 3 * scale), geometric_median(vectors) * scale + 3 * scale, rtol=1e-5, atol=0
    )
    assert math.isfinite(float(geometric_median(vectors).sum()))
