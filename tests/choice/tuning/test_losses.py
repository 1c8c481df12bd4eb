"""What the tuner makes less: suppression with its floor, divergences of lumped predictions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abliterate.choice.tuning.losses import FLOOR, GONE, UNSAID, closing, divergences, drift, fallen, lumped, per_token, suppression
from abliterate.choice.tuning.openings import ALIKE
from abliterate.measures.predictions import with_rest

logprobs = st.lists(st.floats(-20, 0), min_size=1, max_size=8)


@given(logprobs)
def test_suppression_lies_between_certain_and_gone(values: list[float]) -> None:
    assert FLOOR - 1e-5 <= float(suppression(torch.tensor(values))) <= math.log(1 + GONE) + 1e-5


@given(logprobs)
def test_suppression_is_of_the_probability_that_is_measured(values: list[float]) -> None:
    likely = math.exp(sum(values[:ALIKE]))
    assert float(suppression(torch.tensor(values, dtype=torch.float64))) == pytest.approx(math.log(likely + GONE), abs=1e-9)


@given(logprobs, st.integers(0, 7))
def test_a_likelier_token_is_never_less(values: list[float], place: int) -> None:
    less, more = torch.tensor(values), torch.tensor(values)
    more[place % len(values)] /= 2
    assert float(suppression(more)) >= float(suppression(less)) - 1e-6


@given(logprobs)
def test_the_less_an_opening_is_said_the_less_it_pulls(values: list[float]) -> None:
    """A nat of its log-probability counts by how much more likely it is than what is gone."""
    tokens = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    suppression(tokens).backward()
    likely = math.exp(sum(values[:ALIKE]))
    assert tokens.grad is not None
    assert tokens.grad[:ALIKE].tolist() == pytest.approx([likely / (likely + GONE)] * len(values[:ALIKE]))
    assert not tokens.grad[ALIKE:].any()


@given(logprobs)
def test_the_score_of_first_order_effects_weighs_early_tokens_most(values: list[float]) -> None:
    tokens = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    found = per_token(tokens)
    found.backward()  # type: ignore[no-untyped-call]
    assert UNSAID - 1e-9 <= float(found) <= 0
    pulls = [float(pull) for value, pull in zip(values, tokens.grad if tokens.grad is not None else [], strict=True) if value > UNSAID]
    assert pulls == sorted(pulls, reverse=True) and all(pull > 0 for pull in pulls)


@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=8))
def test_only_a_refusal_that_falls_counts(both: list[tuple[float, float]]) -> None:
    before, after = map(list, zip(*both, strict=True))
    base, edited = torch.tensor(before, dtype=torch.float64), torch.tensor(after, dtype=torch.float64)
    found = float(fallen(base, edited))
    assert found >= 0 and float(fallen(base, base)) == 0
    if sum(after[:ALIKE]) >= sum(before[:ALIKE]):
        assert found == 0
    else:
        assert found == pytest.approx(float(suppression(base) - suppression(edited)))


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
