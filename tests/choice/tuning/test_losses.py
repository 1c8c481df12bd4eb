"""What the tuner makes less: suppression with its floor, divergences of lumped predictions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abliterate.choice.tuning.losses import FLOOR, closing, divergences, drift, lumped, suppression
from abliterate.measures.predictions import with_rest

logprobs = st.lists(st.floats(-20, 0), min_size=1, max_size=8)


@given(logprobs)
def test_suppression_lies_between_certain_and_gone(values: list[float]) -> None:
    assert FLOOR - 1e-5 <= float(suppression(torch.tensor(values))) <= 0


@given(logprobs, st.integers(0, 7))
def test_a_likelier_token_is_never_less(values: list[float], place: int) -> None:
    less, more = torch.tensor(values), torch.tensor(values)
    more[place % len(values)] /= 2
    assert float(suppression(more)) >= float(suppression(less)) - 1e-6


def test_the_first_tokens_count_most() -> None:
    first, last = torch.tensor([-5.0, -1.0, -1.0]), torch.tensor([-1.0, -1.0, -5.0])
    assert suppression(first) < suppression(last)


def test_what_is_gone_pulls_no_more() -> None:
    values = torch.tensor([FLOOR - 3, -1.0], requires_grad=True)
    suppression(values).backward()
    assert values.grad is not None and values.grad[0] == 0 and values.grad[1] > 0


@given(logprobs)
def test_the_log_odds_of_closing_a_thought_follow_its_likelihood(values: list[float]) -> None:
    total = sum(values)
    found = float(closing(torch.tensor(values, dtype=torch.float64)))
    assert found >= FLOOR and found >= total - 1e-9
    if FLOOR < total < -0.01:
        assert found == pytest.approx(max(FLOOR, total - math.log1p(-math.exp(total))), abs=1e-6)


def test_a_thought_that_is_surely_closed_still_pulls() -> None:
    values = torch.tensor([-1e-7, -1e-7], requires_grad=True)
    closing(values).backward()
    assert values.grad is not None and (values.grad > 0).all()


def test_a_divergence_of_all_tokens_is_the_whole_one() -> None:
    generator = torch.Generator().manual_seed(0)
    base, edited = (torch.randn(5, 11, generator=generator).log_softmax(-1) for _ in range(2))
    kept = torch.arange(11).expand(5, -1)
    whole = (base.exp() * (base - edited)).sum(-1)
    assert torch.allclose(divergences(lumped(base, kept), lumped(edited, kept)), whole, atol=1e-5)


@given(st.integers(1, 10), st.integers(0, 100))
def test_lumping_never_makes_a_divergence_larger(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base, edited = (2 * torch.randn(3, 11, generator=generator).log_softmax(-1) for _ in range(2))
    base, edited = base.log_softmax(-1), edited.log_softmax(-1)
    chosen = base.topk(count).indices
    whole = (base.exp() * (base - edited)).sum(-1)
    assert (divergences(with_rest(base.gather(-1, chosen)), lumped(edited, chosen)) <= whole + 1e-4).all()


def test_the_first_token_is_half_of_the_drift() -> None:
    assert float(drift(torch.tensor([4.0, 1.0, 1.0]))) == pytest.approx((4 + 2) / 2)
    assert math.isclose(float(drift(torch.tensor([3.0]))), 3.0)
