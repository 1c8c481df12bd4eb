"""In the tuner's coordinates a length is a first-order drift and a length in the stream, in any orthonormal basis and at any width."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from abliterate.choice.tuning.metric import RIDGE, coordinates, damped
from abliterate.choice.tuning.optimiser import SphereAdam
from abliterate.choice.tuning.parameters import Parameters
from abliterate.model.edit import edit_from_rows


def some_cost(seed: int, width: int, tokens: int = 60) -> Tensor:
    """The cost of a stream with one dimension that is a hundred times as long as the others."""
    draw = torch.Generator().manual_seed(seed)
    wrote = torch.randn(tokens, width, generator=draw, dtype=torch.float64)
    wrote[:, seed % width] *= 100
    return wrote.T @ wrote


def some_rows(seed: int, width: int, layers: int = 1) -> Tensor:
    """Unit rows, one for each component."""
    rows = torch.randn(layers, 2, 1, width, generator=torch.Generator().manual_seed(seed + 7))
    return rows / rows.norm(dim=-1, keepdim=True)


def turn_of(width: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(2, 20))
def test_lengths_are_drift(seed: int, width: int) -> None:
    cost, start = some_cost(seed, width), some_rows(seed, width)
    (basis,) = coordinates(cost[None].float(), start)
    u = torch.randn(width, generator=torch.Generator().manual_seed(seed + 1))
    r = (basis @ u).double()
    c = damped(cost, 0.0)
    ridge = max(RIDGE, sum(float(row @ c @ row) for row in start[0, :, 0].double()) / 2)
    assert float(r @ c @ r + ridge * (r @ r)) == pytest.approx(float(u.square().sum()), rel=1e-3)


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(2, 20), st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_small_turn_is_a_small_turn_in_the_stream_however_much_the_start_drifts(seed: int, width: int, times: float) -> None:
    """A turn by t moves the squared length by t times itself, and of that the start's drift is at most one half."""
    cost = some_cost(seed, width)
    start = some_rows(seed, width)
    start[:, :, :, seed % width] *= times  # drifts more or less
    start = start / start.norm(dim=-1, keepdim=True)
    start[:, 1] = start[:, 0]
    basis = coordinates(cost[None].float(), start)
    parameters = Parameters.of(edit_from_rows(start[:, 0], torch.ones(1, 2)), 1.0, True, 1.0, None, basis)
    u = parameters.vectors.detach()[0, 0, 0].double()
    other = torch.randn(width, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    other -= (other @ u) * u
    turned = u * math.cos(0.1) + other / other.norm() * math.sin(0.1)
    before, after = basis[0].double() @ u, basis[0].double() @ turned
    moved = float((after - before).norm() / before.norm())
    c = damped(cost, 0.0)
    row = before / before.norm()
    assert moved <= 0.1 * math.sqrt(1 + float(row @ c @ row) / max(RIDGE, float(row @ c @ row))) + 1e-3


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(2, 12), st.integers(0, 9))
def test_a_wider_stream_with_unused_dimensions_has_the_same_costs(seed: int, width: int, more: int) -> None:
    cost = some_cost(seed, width)
    carry = turn_of(width + more, seed)[:, :width]  # isometric: wide = carry @ narrow
    wide = damped(carry @ cost @ carry.T, 0.0)
    torch.testing.assert_close(carry.T @ wide @ carry, damped(cost, 0.0), rtol=1e-4, atol=1e-6)
    assert torch.equal(damped(torch.zeros(3, 3), 0.1), torch.zeros(3, 3, dtype=torch.float64))
    assert torch.equal(coordinates(torch.zeros(2, 3, 3), some_rows(seed, 3, 2)), torch.eye(3).expand(2, 3, 3))


def parameters_of(basis: Tensor | None, away: Tensor | None = None, k: int = 1) -> Parameters:
    rows = torch.randn(2, k, 12, generator=torch.Generator().manual_seed(5))
    return Parameters.of(edit_from_rows(rows, torch.ones(2, 2)), 1.0, True, 1.0, away, basis)


@pytest.mark.parametrize("k", [1, 2])
def test_the_edit_begins_where_it_would_in_any_coordinates(k: int) -> None:
    basis = coordinates(torch.stack([some_cost(i, 12) for i in range(2)]).float(), some_rows(0, 12, 2))
    own, plain = parameters_of(basis, k=k).baked(), parameters_of(None, k=k).baked()
    torch.testing.assert_close(own.direction, plain.direction, atol=2e-4, rtol=0)
    assert torch.equal(own.strength, plain.strength)


def test_directions_stay_off_what_they_must_stay_off_in_any_coordinates() -> None:
    basis = coordinates(torch.stack([some_cost(i, 12) for i in range(2)]).float(), some_rows(0, 12, 2))
    away = torch.linalg.qr(torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(3)))[0].transpose(-1, -2).clone()
    away[0, 2] = 0  # this block has an axis less
    parameters = parameters_of(basis, away)
    with torch.no_grad():
        parameters.vectors += torch.randn(2, 2, 1, 12, generator=torch.Generator().manual_seed(4))
    parameters.settle()
    direction = parameters.baked().direction
    assert torch.einsum("lckd,lnd->lckn", direction, away).abs().max() < 1e-3
    assert torch.allclose(parameters.vectors.norm(dim=-1), torch.ones(2, 2, 1), atol=1e-5)
    assert torch.allclose(direction.norm(dim=-1), torch.ones(2, 2, 1), atol=1e-5)


def test_a_step_adds_as_much_drift_whatever_the_stream_is_like() -> None:
    """The same turn in the metric: towards the long dimension, a direction hardly turns in the stream."""
    cost = some_cost(3, 12)
    mild = torch.eye(12)[8].expand(2, 2, 1, 12)  # a start that hardly drifts
    basis = coordinates(torch.stack([cost, cost]).float(), mild)
    ridge = max(RIDGE, float(damped(cost, 0.0)[8, 8]))
    shrunk = damped(cost, ridge)
    for goal in (3, 5):  # the long dimension, and another
        parameters = parameters_of(basis)
        before = parameters.baked().direction[0, 0, 0].double()
        optimiser = SphereAdam(parameters.vectors, 0.1)
        (-parameters.edit().direction[..., goal].sum()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        after = parameters.baked().direction[0, 0, 0].double()
        own = before / (before @ shrunk @ before).sqrt()
        turned = after / (after @ shrunk @ after).sqrt()
        assert float(own @ shrunk @ turned) == pytest.approx(torch.cos(torch.tensor(0.1)).item(), abs=1e-3)
        assert float(after @ shrunk @ after) < 4 * float(before @ shrunk @ before)
