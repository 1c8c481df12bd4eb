"""The edit as a function of tensors: what it removes, what it leaves."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.checkpoint.orthogonalise import _blocks, component_along, orthogonalise, panels, read_component, remove
from abliterate.errors import InputError
from abliterate.model.removal import MAX_STRETCH, removal

SIZES = st.integers(2, 24)
SEEDS = st.integers(0, 10_000)
CHUNK = "abliterate.checkpoint.orthogonalise._CHUNK"
# Every place that d_model (8 here) has in a stored tensor.
LAYOUTS = {
    "a matrix [out, in]": ((8, 5), 0),
    "a matrix [in, out]": ((5, 8), 1),
    "a bias": ((8,), 0),
    "biases of experts": ((3, 8), 1),
    "experts [expert, out, in]": ((3, 8, 5), 1),
    "experts [expert, in, out]": ((3, 5, 8), 2),
    "experts that are square, out first": ((3, 8, 8), 1),
    "experts that are square, in first": ((3, 8, 8), 2),
    "out before the experts": ((8, 3, 5), 0),
    "one input": ((8, 1), 0),
}
EVERY_LAYOUT = pytest.mark.parametrize(("shape", "axis"), LAYOUTS.values(), ids=LAYOUTS)


def _rows(k: int, d_model: int, seed: int) -> torch.Tensor:
    square = torch.randn(d_model, d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(square).Q[:, :k].T.float().contiguous()


def _weight(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 1))


def _gamma(seed: int, d_model: int) -> torch.Tensor:
    """A norm's weights of both signs, between 0.25 and 4 in size."""
    made = torch.rand(2, d_model, generator=torch.Generator().manual_seed(seed + 2))
    return 4 ** (2 * made[0] - 1) * torch.where(made[1] < 0.2, -1.0, 1.0)


def _columns(weight: torch.Tensor, axis: int) -> torch.Tensor:
    """The vectors of size d_model that a tensor writes, as columns in float64."""
    return weight.double().movedim(axis, 0).reshape(weight.shape[axis], -1)


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
@given(SIZES, st.integers(1, 9), st.integers(1, 3), SEEDS)
def test_only_the_component_along_the_rows_moves(d_model: int, columns: int, k: int, seed: int) -> None:
    rows, weight = _rows(min(k, d_model), d_model, seed), _weight(seed, d_model, columns)
    change = (orthogonalise(weight, rows, 1.0, 0) - weight).double()
    beside = change - rows.double().T @ (rows.double() @ change)
    assert float(beside.norm()) <= 1e-6 * float(weight.norm())


@settings(max_examples=30, deadline=None)
@given(SIZES, SEEDS)
def test_editing_twice_is_editing_once(d_model: int, seed: int) -> None:
    rows, weight = _rows(2, d_model, seed), _weight(seed, d_model, 5)
    once = orthogonalise(weight, rows, 1.0, 0)
    torch.testing.assert_close(orthogonalise(once, rows, 1.0, 0), once, atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 24), st.integers(1, 9), SEEDS)
def test_k_directions_at_once_are_k_edits_one_after_the_other(d_model: int, columns: int, seed: int) -> None:
    rows, weight = _rows(3, d_model, seed), _weight(seed, d_model, columns)
    one_by_one = weight
    for row in rows:
        one_by_one = orthogonalise(one_by_one, row[None], 1.0, 0)
    torch.testing.assert_close(orthogonalise(weight, rows, 1.0, 0), one_by_one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("columns", [False, True])
def test_strength_zero_changes_nothing(columns: bool) -> None:
    weight = _weight(3, 8, 5)
    edited = orthogonalise(weight, _rows(1, 8, 3), 0.0, 0, columns=columns)
    torch.testing.assert_close(edited, weight, atol=0, rtol=1e-6 if columns else 0)


@EVERY_LAYOUT
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("behind_a_norm", [False, True])
def test_every_vector_of_size_d_model_is_edited_wherever_it_lies(shape: tuple[int, ...], axis: int, k: int, behind_a_norm: bool) -> None:
    rows, weight, gamma = _rows(k, 8, 4), _weight(4, *shape), _gamma(4, 8) if behind_a_norm else torch.ones(8)
    edited = orthogonalise(weight, rows, 0.75, axis, gamma if behind_a_norm else None)
    before, d, r = _columns(weight, axis), gamma.double()[:, None], rows.double()
    torch.testing.assert_close(_columns(edited, axis), before - 0.75 * (r.T @ (r @ (d * before))) / d, atol=1e-5, rtol=0)
    assert edited.shape == weight.shape
    assert component_along(weight, rows, axis) == pytest.approx(float((r @ before).norm()), rel=1e-5)


@EVERY_LAYOUT
@pytest.mark.parametrize("chunk", [1, 5, 9, 24])
@pytest.mark.parametrize("behind_a_norm", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_an_edit_in_blocks_is_the_edit_in_one_piece(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], axis: int, chunk: int, behind_a_norm: bool, columns: bool
) -> None:
    rows, weight, gamma = _rows(2, 8, 5), _weight(5, *shape), _gamma(5, 8) if behind_a_norm else None
    task = removal(rows, gamma)
    whole, found = orthogonalise(weight, rows, 0.9, axis, gamma, columns), read_component(weight, task, axis, columns)
    monkeypatch.setattr(CHUNK, chunk)
    again = read_component(weight, task, axis, columns)
    torch.testing.assert_close(again.component, found.component, atol=1e-6, rtol=0)
    assert again.size == pytest.approx(found.size, rel=1e-6)
    torch.testing.assert_close(orthogonalise(weight, rows, 0.9, axis, gamma, columns), whole, atol=3e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data(), st.integers(6, 40))
def test_blocks_hold_every_element_once_and_no_more_than_a_chunk(shape: list[int], data: st.DataObject, chunk: int) -> None:
    outer, width, inner = panels(tuple(shape), data.draw(st.integers(0, len(shape) - 1)))
    counts = torch.zeros(outer, width, inner)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CHUNK, chunk)
        for o, rows in _blocks(outer, width, inner):
            assert counts[o, rows].numel() <= max(chunk, inner)
            counts[o, rows] += 1
    assert counts.numel() == prod(shape) and bool((counts == 1).all())


def test_half_precision_is_computed_in_float32_and_double_in_double() -> None:
    rows, weight = _rows(1, 8, 7), _weight(7, 8, 5)
    stored = weight.bfloat16()
    assert torch.equal(orthogonalise(stored, rows, 1.0, 0), orthogonalise(stored.float(), rows, 1.0, 0))
    edited = orthogonalise(weight.double(), rows, 1.0, 0)
    assert edited.dtype == torch.float64 and component_along(edited, rows, 0) < 1e-7  # the rows themselves are float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [False, True])
def test_a_stored_tensor_is_rounded_once_in_place(dtype: torch.dtype, columns: bool) -> None:
    rows, weight = _rows(2, 8, 8), _weight(8, 8, 5).to(dtype)
    exact, task = orthogonalise(weight, rows, 1.0, 0, columns=columns), removal(rows)
    remove(weight, task, 1.0, 0, read_component(weight, task, 0, columns))
    assert weight.dtype == dtype and torch.equal(weight, exact.to(dtype))


def test_component_is_the_norm_along_the_row() -> None:
    assert component_along(torch.tensor([[3.0, 4.0], [7.0, 7.0]]), torch.tensor([[1.0, 0.0]]), 0) == 5.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@EVERY_LAYOUT
def test_a_value_that_is_not_finite_is_found(shape: tuple[int, ...], axis: int, value: float) -> None:
    weight, task = _weight(9, *shape), removal(_rows(1, 8, 9))
    assert read_component(weight, task, axis).finite
    weight.view(-1)[-1] = value
    assert not read_component(weight, task, axis).finite


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(1, 9), st.integers(1, 3), st.floats(0, 1), SEEDS)
def test_an_edit_that_keeps_norms_keeps_the_length_of_every_column(d_model: int, columns: int, k: int, strength: float, seed: int) -> None:
    rows, weight = _rows(min(k, d_model - 1), d_model, seed), _weight(seed, d_model, columns)
    kept, plain = orthogonalise(weight, rows, strength, 0, columns=True), orthogonalise(weight, rows, strength, 0)
    torch.testing.assert_close(kept.norm(dim=0), weight.norm(dim=0), rtol=1e-4, atol=0)
    torch.testing.assert_close(kept / kept.norm(dim=0), plain / plain.norm(dim=0), rtol=0, atol=1e-3)


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(1, 9), st.integers(1, 3), SEEDS, st.booleans())
def test_keeping_norms_puts_nothing_back_along_the_rows(d_model: int, columns: int, k: int, seed: int, behind_a_norm: bool) -> None:
    rows, weight = _rows(min(k, d_model - 1), d_model, seed), _weight(seed, d_model, columns)
    gamma = _gamma(seed, d_model) if behind_a_norm else None
    edited = orthogonalise(weight, rows, 1.0, 0, gamma, columns=True)
    assert read_component(edited, removal(rows, gamma), 0).along <= 1e-6 * read_component(weight, removal(rows, gamma), 0).size


@EVERY_LAYOUT
def test_norms_are_those_of_the_vectors_that_enter_the_stream(shape: tuple[int, ...], axis: int) -> None:
    weight = _weight(10, *shape)
    edited = orthogonalise(weight, _rows(1, 8, 10), 1.0, axis, _gamma(10, 8), columns=True)
    torch.testing.assert_close(_columns(edited, axis).norm(dim=0), _columns(weight, axis).norm(dim=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("aside", "length"), [(0.0, 0.0), (1e-8, 0.0), (1e-6, 0.0), (1e-5, 3.0), (1e-4, 3.0), (1e-3, 3.0), (0.1, 3.0)])
def test_lengthening_a_column_that_is_all_but_along_the_row_lengthens_no_rounding(aside: float, length: float) -> None:
    rows = _rows(2, 8, 11)
    weight = 3 * rows[:1].T + aside * rows[1:].T
    edited = orthogonalise(weight, rows[:1], 1.0, 0, columns=True)
    assert float(edited.norm()) == pytest.approx(length, abs=2e-3)
    assert component_along(edited, rows[:1], 0) <= 1e-6 * float(weight.norm())


def _through_a_norm(weight: torch.Tensor, gamma: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """gamma * RMSNorm(W x) of each column of inputs."""
    y = weight.double() @ inputs.double()
    return gamma.double()[:, None] * y / y.square().mean(0).sqrt()


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 24), st.integers(2, 9), st.integers(1, 3), SEEDS)
def test_nothing_enters_the_stream_along_the_rows_through_a_norm(d_model: int, columns: int, k: int, seed: int) -> None:
    rows, weight, gamma = _rows(k, d_model, seed), _weight(seed, d_model, columns), _gamma(seed, d_model)
    inputs = _weight(seed + 1, columns, 6)
    added = _through_a_norm(orthogonalise(weight, rows, 1.0, 0, gamma), gamma, inputs)
    assert float((rows.double() @ added).norm()) <= 1e-5 * float(added.norm())
    assert float((rows.double() @ _through_a_norm(weight, gamma, inputs)).norm()) > 1e-2 * float(added.norm())


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 24), st.integers(1, 3), st.floats(0, 1), SEEDS)
def test_an_edit_behind_a_norm_is_the_run_time_one_but_for_the_norms_scale(d_model: int, k: int, strength: float, seed: int) -> None:
    rows, weight, gamma = _rows(k, d_model, seed), _weight(seed, d_model, 5), _gamma(seed, d_model)
    task, d, r = removal(rows, gamma), gamma.double()[:, None], rows.double()
    assert task.oblique
    edited = orthogonalise(weight, rows, strength, 0, gamma)
    wanted = d * weight - strength * r.T @ (r @ (d * weight))
    torch.testing.assert_close(d * edited, wanted, atol=2e-5, rtol=0)
    found = read_component(weight, task, 0)
    assert found.size == pytest.approx(float((d * weight).norm()), rel=1e-5)
    left = read_component(edited, task, 0).along
    assert left == pytest.approx((1 - strength) * found.along, abs=1e-5 * found.size)


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 24), st.integers(1, 2), st.sampled_from([0.0, 1e-30, 1e-12, 1e-6]), SEEDS)
def test_where_gamma_is_nearly_zero_the_edit_is_exact_and_tears_nothing(d_model: int, k: int, tiny: float, seed: int) -> None:
    rows, weight, gamma = _rows(k, d_model, seed), _weight(seed, d_model, 5), _gamma(seed, d_model)
    gamma[int(rows[0].abs().argmax())] *= tiny
    task = removal(rows, gamma)
    edited = orthogonalise(weight, rows, 1.0, 0, gamma)
    assert float(edited.norm()) <= 1.0001 * float(weight.norm())
    assert read_component(edited, task, 0).along <= 1e-5 * float(weight.norm()) * float(task.q.norm())


def test_the_fallback_projects_orthogonally_and_only_where_the_oblique_removal_stretches_too_much() -> None:
    row = torch.tensor([[0.6, 0.8, 0.0]])
    for small, orthogonal in ((2 / MAX_STRETCH, False), (0.2 / MAX_STRETCH, True)):
        task = removal(row, torch.tensor([small, 1.0, 1.0]))
        towards = task.q.T / task.q.norm() ** 2 if orthogonal else (row.double() / torch.tensor([small, 1.0, 1.0]).double()).T
        torch.testing.assert_close(task.w, towards)
        torch.testing.assert_close(task.q @ task.w, torch.ones(1, 1, dtype=torch.float64))


def test_a_gamma_that_lets_nothing_of_a_row_through_is_refused() -> None:
    with pytest.raises(InputError, match="writes nothing along it"):
        removal(torch.eye(2, 4), torch.tensor([1.0, 0.0, 1.0, 1.0]))


def test_without_a_norm_the_removal_is_the_projection() -> None:
    rows = _rows(2, 8, 12)
    task = removal(rows)
    assert not task.oblique
    assert torch.equal(task.q, rows.double())
    torch.testing.assert_close(task.q @ task.w, torch.eye(2, dtype=torch.float64), atol=1e-15, rtol=0)
    torch.testing.assert_close(task.w, rows.double().T, atol=1e-6, rtol=0)
