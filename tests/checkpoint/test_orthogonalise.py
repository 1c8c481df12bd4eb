"""The edit as a function of tensors: what it removes, what it leaves."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.checkpoint.orthogonalise import component_along, orthogonalise

SIZES = st.integers(2, 24)
SEEDS = st.integers(0, 10_000)


def _rows(k: int, d_model: int, seed: int) -> torch.Tensor:
    square = torch.randn(d_model, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(square).Q[:, :k].T.float().contiguous()


def _weight(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 1))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 9), st.integers(1, 3), SEEDS)
def test_full_strength_leaves_no_component_along_the_rows(d_model: int, columns: int, k: int, seed: int) -> None:
    rows, weight = _rows(min(k, d_model), d_model, seed), _weight(seed, d_model, columns)
    edited = orthogonalise(weight, rows, 1.0, 0)
    assert component_along(edited, rows, 0) <= 1e-6 * float(weight.norm())


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 9), st.floats(0, 1), SEEDS)
def test_strength_scales_what_is_removed(d_model: int, columns: int, strength: float, seed: int) -> None:
    rows, weight = _rows(1, d_model, seed), _weight(seed, d_model, columns)
    left = component_along(orthogonalise(weight, rows, strength, 0), rows, 0)
    assert abs(left - (1 - strength) * component_along(weight, rows, 0)) <= 1e-6 * float(weight.norm())


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 9), SEEDS)
def test_only_the_component_along_the_rows_moves(d_model: int, columns: int, seed: int) -> None:
    rows, weight = _rows(1, d_model, seed), _weight(seed, d_model, columns)
    change = (orthogonalise(weight, rows, 1.0, 0) - weight).double()
    beside = change - rows.double().T @ (rows.double() @ change)
    assert float(beside.norm()) <= 1e-6 * float(weight.norm())


@settings(max_examples=30, deadline=None)
@given(SIZES, SEEDS)
def test_editing_twice_is_editing_once(d_model: int, seed: int) -> None:
    rows, weight = _rows(2, d_model, seed), _weight(seed, d_model, 5)
    once = orthogonalise(weight, rows, 1.0, 0)
    torch.testing.assert_close(orthogonalise(once, rows, 1.0, 0), once, atol=1e-5, rtol=0)


def test_strength_zero_changes_nothing() -> None:
    weight = _weight(3, 8, 5)
    assert torch.equal(orthogonalise(weight, _rows(1, 8, 3), 0.0, 0), weight)


def test_d_model_on_the_last_axis_is_the_transpose_of_the_first() -> None:
    rows, weight = _rows(2, 8, 4), _weight(4, 5, 8)
    torch.testing.assert_close(orthogonalise(weight, rows, 1.0, 1), orthogonalise(weight.T, rows, 1.0, 0).T)


def test_a_middle_axis_is_edited_slice_by_slice() -> None:
    rows, weight = _rows(1, 8, 5), _weight(5, 3, 8, 4)
    edited = orthogonalise(weight, rows, 1.0, 1)
    torch.testing.assert_close(edited, torch.stack([orthogonalise(expert, rows, 1.0, 0) for expert in weight]))


def test_a_bias_is_edited_as_a_column() -> None:
    rows, bias = _rows(1, 8, 6), _weight(6, 8)
    torch.testing.assert_close(orthogonalise(bias, rows, 1.0, 0), orthogonalise(bias[:, None], rows, 1.0, 0)[:, 0])


def test_half_precision_is_computed_in_float32_and_double_in_double() -> None:
    rows, weight = _rows(1, 8, 7), _weight(7, 8, 5)
    stored = weight.bfloat16()
    assert torch.equal(orthogonalise(stored, rows, 1.0, 0), orthogonalise(stored.float(), rows, 1.0, 0))
    assert orthogonalise(weight.double(), rows, 1.0, 0).dtype == torch.float64


def test_component_is_the_norm_along_the_row() -> None:
    assert component_along(torch.tensor([[3.0, 4.0], [7.0, 7.0]]), torch.tensor([[1.0, 0.0]]), 0) == 5.0
