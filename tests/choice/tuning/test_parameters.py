"""Strengths stay where they may be, directions of length one and orthogonal to what they must be."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from abliterate.choice.tuning.parameters import Parameters, orthonormal
from abliterate.model.edit import Edit, edit_from_rows


def some_plan(seed: int = 0, k: int = 1) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    strength = torch.ones(4, 2)
    strength[0] = 0
    return edit_from_rows(torch.randn(4, k, 16, generator=generator), strength)


def gram(rows: Tensor) -> Tensor:
    return rows @ rows.transpose(-1, -2)


@given(st.integers(0, 50), st.integers(1, 3))
def test_rows_are_orthonormal_and_the_first_keeps_its_direction(seed: int, k: int) -> None:
    vectors = torch.randn(4, 2, k, 16, generator=torch.Generator().manual_seed(seed))
    made = orthonormal(vectors)
    assert torch.allclose(gram(made), torch.eye(k).expand(4, 2, k, k), atol=1e-4)
    assert torch.allclose(made[..., 0, :], vectors[..., 0, :] / vectors[..., 0, :].norm(dim=-1, keepdim=True), atol=1e-5)


def test_it_begins_where_the_plan_is_and_only_there() -> None:
    plan = some_plan()
    parameters = Parameters.of(plan, 0.5, True)
    baked = parameters.baked()
    assert torch.equal(baked.strength, 0.5 * (plan.strength > 0))
    assert torch.allclose(baked.direction, plan.direction, atol=1e-6) and baked.embedding == "skip"
    assert parameters.turned().item() < 1e-6


@given(st.floats(0.1, 1.0), st.integers(0, 30))
def test_settled_strengths_lie_between_zero_and_the_most(most: float, seed: int) -> None:
    parameters = Parameters.of(some_plan(), most, False, most)
    with torch.no_grad():
        parameters.strength += 3 * torch.randn(4, 2, generator=torch.Generator().manual_seed(seed))
    parameters.settle()
    assert (parameters.strength >= 0).all() and (parameters.strength <= most).all()


def test_directions_stay_off_what_they_must_stay_off() -> None:
    away = torch.linalg.qr(torch.randn(4, 16, 2, generator=torch.Generator().manual_seed(3)))[0].transpose(-1, -2)
    parameters = Parameters.of(some_plan(), 0.5, True, away=away)
    with torch.no_grad():
        parameters.vectors += torch.randn(4, 2, 1, 16, generator=torch.Generator().manual_seed(4))
    parameters.settle()
    assert torch.einsum("lckd,lnd->lckn", parameters.baked().direction, away).abs().max() < 1e-5
    assert torch.allclose(parameters.vectors.norm(dim=-1), torch.ones(4, 2, 1), atol=1e-5)


def test_directions_that_are_not_learned_get_no_gradient() -> None:
    parameters = Parameters.of(some_plan(), 0.5, False)
    (parameters.edit().direction.sum() + parameters.edits()).backward()
    assert parameters.vectors.grad is None and parameters.strength.grad is not None
