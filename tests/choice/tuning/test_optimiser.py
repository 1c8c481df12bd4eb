"""A step of the directions is an angle: the same in every width and every basis."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isometric import isometry
from torch import Tensor

from abliterate.choice.tuning.optimiser import SphereAdam

WIDTH = 16
WIDTHS = [64, 576, 4096]


def rows_of(seed: int) -> Tensor:
    rows = torch.randn(5, 2, 1, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows / rows.norm(dim=-1, keepdim=True)


def walked(carry: Tensor, seed: int, steps: int, turn: float) -> list[Tensor]:
    """The rows after each step down a noisy quadratic, in the basis that ``carry`` [wider, WIDTH] carries them to."""
    noise = torch.Generator().manual_seed(seed + 1)
    curved = torch.randn(WIDTH, WIDTH, generator=noise, dtype=torch.float64)
    rows = (rows_of(seed) @ carry.T).requires_grad_()
    optimiser = SphereAdam(rows, turn)
    seen = []
    for _ in range(steps):
        pushed = torch.randn(WIDTH, generator=noise, dtype=torch.float64)
        optimiser.zero_grad()
        inner = rows @ carry
        ((inner @ curved.T).square().sum() + (inner * pushed).sum()).backward()
        optimiser.step()
        seen.append(rows.detach().clone())
    return seen


def angles(before: Tensor, after: Tensor) -> Tensor:
    return 2 * torch.asin((after - before).norm(dim=-1) / 2)


@pytest.mark.parametrize("wider", WIDTHS)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 20))
def test_the_same_problem_turns_by_the_same_angles_and_ends_at_the_same_rows_in_every_width(wider: int, seed: int) -> None:
    carry = isometry(WIDTH, wider)
    narrow = [rows_of(seed), *walked(torch.eye(WIDTH, dtype=torch.float64), seed, 8, 0.2)]
    wide = [rows_of(seed) @ carry.T, *walked(carry, seed, 8, 0.2)]
    for n in range(8):
        assert torch.allclose(angles(narrow[n], narrow[n + 1]), angles(wide[n], wide[n + 1]), atol=1e-9)
    assert torch.allclose(wide[-1], narrow[-1] @ carry.T, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 20), st.floats(0.01, 1.0))
def test_the_first_step_turns_by_the_rate_and_no_step_by_much_more(seed: int, turn: float) -> None:
    seen = [rows_of(seed), *walked(torch.eye(WIDTH, dtype=torch.float64), seed, 6, turn)]
    assert torch.allclose(angles(seen[0], seen[1]), torch.tensor(turn, dtype=torch.float64), atol=1e-9)
    most = max(float(angles(a, b).max()) for a, b in itertools.pairwise(seen))
    assert most <= 1.6 * turn + 1e-9  # Adam's own bound on a step with running means this short


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 20))
def test_rows_stay_of_length_one(seed: int) -> None:
    for rows in walked(torch.eye(WIDTH, dtype=torch.float64), seed, 6, 0.5):
        assert torch.allclose(rows.norm(dim=-1), torch.ones(()).double(), atol=1e-12)


def test_a_row_without_a_gradient_stays_where_it_is() -> None:
    rows = rows_of(0).requires_grad_()
    before = rows.detach().clone()
    optimiser = SphereAdam(rows, 0.3)
    (rows[1:] ** 3).sum().backward()
    optimiser.step()
    assert torch.allclose(rows[0], before[0], atol=1e-15) and not torch.allclose(rows[1], before[1], atol=1e-3)


def test_the_steps_of_a_steady_gradient_add_up_to_an_arc() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    optimiser = SphereAdam(rows, 0.1)
    for _ in range(5):
        optimiser.zero_grad()
        tangent = torch.linalg.cross(torch.tensor([[0.0, 0.0, -1.0]], dtype=torch.float64), rows.detach())
        rows.backward(tangent)
        optimiser.step()
    end = rows.detach()
    assert math.atan2(float(end[0, 1]), float(end[0, 0])) == pytest.approx(0.5, abs=0.05) and float(end[0, 2]) == 0
