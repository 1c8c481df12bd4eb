"""KL divergence of two rows of log-probabilities."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.evaluation.drift import kl_divergence


def rows(seed: int, spread: float = 1.0) -> torch.Tensor:
    return (spread * torch.randn(5, 40, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 20.0))
def test_kl_is_never_negative(seed: int, spread: float) -> None:
    assert (kl_divergence(rows(seed, spread), rows(seed + 1, spread)) >= 0).all()


def test_kl_of_a_row_with_itself_is_zero() -> None:
    assert (kl_divergence(rows(1), rows(1)) == 0).all()


def test_kl_is_torchs() -> None:
    base, edited = rows(1), rows(2)
    expected = torch.nn.functional.kl_div(edited, base, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl_divergence(base, edited), expected, rtol=1e-5, atol=1e-6)


def test_kl_is_in_nats() -> None:
    certain, fair = torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.5, 0.5]]).log()
    torch.testing.assert_close(kl_divergence(certain, fair), torch.tensor([math.log(2)]))


def test_kl_is_of_base_from_edited() -> None:
    certain, fair = torch.tensor([[0.0, -math.inf]]), torch.tensor([[0.5, 0.5]]).log()
    assert kl_divergence(fair, certain).isinf().all()


def test_small_kl_of_a_wide_vocabulary_is_not_lost_to_rounding() -> None:
    base = torch.randn(1, 150_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    edited = (base + 1e-3 * torch.randn(base.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).log_softmax(-1)
    exact = (base.exp() * (base - edited)).sum(-1)
    torch.testing.assert_close(kl_divergence(base.float(), edited.float()).double(), exact, rtol=0.05, atol=0)
