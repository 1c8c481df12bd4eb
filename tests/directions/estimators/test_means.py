"""Estimates of directions as pure functions."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.directions.estimators.difference_of_means import difference_of_means
from abliterate.directions.estimators.projected import projected


def _pair(width: int, scale: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, width, generator=generator), torch.randn(2, 3, width, generator=generator) * scale


def test_difference_of_means_points_from_baseline_to_target() -> None:
    assert torch.equal(difference_of_means(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])), torch.tensor([2.0, 0.0]))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.sampled_from([1e-3, 1.0, 1e3, 1e6]), st.integers(0, 1000))
def test_projected_is_orthogonal_to_what_it_is_kept_away_from(width: int, scale: float, seed: int) -> None:
    direction, away = _pair(width, scale, seed)
    cosine = (projected(direction, away).double() * away.double()).sum(-1) / (direction.double().norm(dim=-1) * away.double().norm(dim=-1))
    assert float(cosine.abs().max()) < 1e-6


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(0, 1000))
def test_projected_takes_away_nothing_else(width: int, seed: int) -> None:
    direction, away = _pair(width, 1.0, seed)
    taken = direction - projected(direction, away)
    along = taken.double() - (taken.double() * away.double()).sum(-1, keepdim=True) / away.double().square().sum(-1, keepdim=True) * away
    assert float(along.abs().max()) < 1e-5


def test_projected_away_from_nothing_is_the_direction() -> None:
    direction = torch.tensor([[1.0, 2.0]])
    assert torch.equal(projected(direction, torch.zeros(1, 2)), direction)


def test_ablating_the_projected_direction_leaves_the_mean_in_place() -> None:
    direction, mean = _pair(16, 5.0, 3)
    r = projected(direction, mean)
    r = r / r.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(mean - (mean * r).sum(-1, keepdim=True) * r, mean)
