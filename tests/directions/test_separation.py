"""Separation scores against brute force."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.directions.separation import auc, cohens_d, projections

SAMPLE = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12)


def _brute_auc(target: list[float], baseline: list[float]) -> float:
    wins = sum(1.0 if t > b else 0.5 if t == b else 0.0 for t in target for b in baseline)
    return wins / (len(target) * len(baseline))


@settings(max_examples=100, deadline=None)
@given(SAMPLE, SAMPLE)
def test_auc_counts_the_pairs(target: list[float], baseline: list[float]) -> None:
    assert float(auc(torch.tensor(target), torch.tensor(baseline))) == pytest.approx(_brute_auc(target, baseline), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(SAMPLE, SAMPLE)
def test_auc_of_the_swapped_sets_is_the_rest(target: list[float], baseline: list[float]) -> None:
    t, b = torch.tensor(target), torch.tensor(baseline)
    assert float(auc(t, b) + auc(b, t)) == pytest.approx(1, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(SAMPLE, SAMPLE)
def test_cohens_d_is_the_difference_over_the_pooled_deviation(target: list[float], baseline: list[float]) -> None:
    pooled = ((statistics.pvariance(target) + statistics.pvariance(baseline)) / 2) ** 0.5
    expected = (statistics.fmean(target) - statistics.fmean(baseline)) / pooled if pooled else 0.0
    assert float(cohens_d(torch.tensor(target), torch.tensor(baseline))) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_scores_are_taken_place_by_place() -> None:
    torch.manual_seed(0)
    target, baseline = torch.randn(7, 2, 3) + 1, torch.randn(5, 2, 3)
    for score in (auc, cohens_d):
        found = score(target, baseline)
        assert found.shape == (2, 3)
        assert float(found[1, 2]) == pytest.approx(float(score(target[:, 1, 2], baseline[:, 1, 2])))


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(0, 100))
def test_projections_are_coordinates_along_the_unit_direction(scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors, direction = torch.randn(4, 2, 8, generator=generator), torch.randn(2, 8, generator=generator)
    found = projections(vectors, direction * scale)
    for prompt in range(4):
        for place in range(2):
            unit = direction[place] / direction[place].norm()
            assert float(found[prompt, place]) == pytest.approx(float(vectors[prompt, place] @ unit), abs=1e-4)


def test_projections_on_no_direction_are_zero() -> None:
    assert not projections(torch.ones(3, 2, 4), torch.zeros(2, 4)).any()
