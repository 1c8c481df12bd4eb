"""Running moments are torch's, however the vectors are dealt out."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.directions.moments import RunningMoments


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.floats(-1e3, 1e3), st.integers(0, 1000))
def test_moments_are_those_of_all_vectors_at_once(parts: list[int], offset: float, seed: int) -> None:
    values = torch.randn(sum(parts), 2, 3, generator=torch.Generator().manual_seed(seed)) + offset
    moments = RunningMoments((2, 3))
    for part in values.split(parts):
        moments.update(part)
    assert moments.count == len(values)
    torch.testing.assert_close(moments.mean(), values.double().mean(0).float())
    torch.testing.assert_close(moments.second_moment(), values.double().square().mean(0).float())


def test_small_differences_on_a_large_mean_are_kept() -> None:
    moments = RunningMoments((1,))
    for _ in range(2000):
        moments.update(torch.tensor([[4194304.0], [1.0]]))
    assert float(moments.mean()) == 2097152.5
