"""Rounding with error feedback: what lies along the directions survives, whatever each element is rounded to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.errors import InputError
from abliterate.model.formats.rounding import grid, round_compensated, round_nearest

SMALL = [torch.float8_e4m3fn, torch.bfloat16, torch.float16]


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _along(left: torch.Tensor, matrix: torch.Tensor) -> float:
    return float((left.double() @ matrix.double()).norm())


def _edited(stored: torch.Tensor, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.linalg.qr(_random(seed, stored.shape[0], k).double()).Q.T.float().contiguous()
    return stored - rows.T @ (rows @ stored), rows


@pytest.mark.parametrize("dtype", SMALL)
def test_the_grid_lists_each_value_between_its_neighbours(dtype: torch.dtype) -> None:
    value, below, above = grid(dtype)
    inside = value.isfinite() & (value.abs() < torch.finfo(dtype).max)
    assert bool((below[inside] < value[inside]).all()) and bool((value[inside] < above[inside]).all())
    # Nothing lies between: the middle of a value and its neighbour rounds to one of the two.
    for other in (below, above):
        middle = round_nearest(value[inside] / 2 + other[inside] / 2, dtype).float()
        assert bool(((middle == value[inside]) | (middle == other[inside])).all())


@pytest.mark.parametrize("dtype", SMALL)
def test_the_grid_ends_at_the_largest_finite_value_and_passes_zero_once(dtype: torch.dtype) -> None:
    value, below, above = grid(dtype)
    largest, smallest = torch.finfo(dtype).max, float(value[1])
    assert float(above[value == largest]) == largest and float(below[value == -largest]) == -largest
    zeros = value == 0
    assert int(zeros.sum()) == 2 and set(above[zeros].tolist()) == {smallest} and set(below[zeros].tolist()) == {-smallest}


@pytest.mark.parametrize("dtype", SMALL)
def test_representable_values_that_keep_the_product_come_back_as_they_are(dtype: torch.dtype) -> None:
    stored = round_nearest(_random(0, 70, 9), dtype)
    assert torch.equal(round_compensated(stored.float(), _random(1, 2, 70), dtype).float(), stored.float())


@pytest.mark.parametrize("dtype", SMALL)
def test_nearest_saturates(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert round_nearest(torch.tensor([1e38, -1e38]) * 10, dtype).float().tolist() == [largest, -largest]


@pytest.mark.parametrize(("dtype", "k", "bound"), [(torch.bfloat16, 1, 1e-5), (torch.bfloat16, 3, 1e-4), (torch.float16, 1, 1e-5)])
def test_a_removed_direction_stays_removed_in_half_precision(dtype: torch.dtype, k: int, bound: float) -> None:
    stored = (_random(2, 7168, 64) * 0.02).to(dtype).float()
    wide, rows = _edited(stored, k, 3)
    ours, plain = round_compensated(wide, rows, dtype).float(), round_nearest(wide, dtype).float()
    assert _along(rows, ours) <= bound * _along(rows, stored)
    assert _along(rows, ours) <= 0.01 * _along(rows, plain)
    assert float((ours - wide).norm()) <= 1.5 * float((plain - wide).norm())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from(SMALL),
    st.sampled_from([1e-4, 1.0, 300.0]),
    st.integers(0, 9999),
)
def test_small_matrices_end_no_worse_than_plain_but_for_a_rounding_step(
    out: int, columns: int, k: int, dtype: torch.dtype, size: float, seed: int
) -> None:
    wide, left = _random(seed, out, columns) * size, _random(seed + 1, k, out)
    ours, plain = round_compensated(wide, left, dtype), round_nearest(wide, dtype)
    assert bool(ours.float().isfinite().all())
    step = torch.maximum(*(plain.float().sub(t).abs() for t in _neighbours(plain)))
    assert bool(((ours.float() - plain.float()).abs() <= step).all())
    worst = float((left.double().norm(dim=0)[:, None] * step).max()) * columns**0.5
    assert _along(left, ours.float() - wide) <= _along(left, plain.float() - wide) + 2 * worst


def _neighbours(stored: torch.Tensor) -> list[torch.Tensor]:
    bits = stored.view(torch.uint8).int() if stored.dtype.itemsize == 1 else stored.view(torch.int16).int() & 0xFFFF
    return [table[bits] for table in grid(stored.dtype)[1:]]


def test_a_long_and_a_doubled_direction_do_not_hide_the_others() -> None:
    stored = round_nearest(_random(4, 2048, 16), torch.bfloat16).float()
    wide, rows = _edited(stored, 2, 5)
    left = torch.stack([100 * rows[0], 100 * rows[0], rows[0] + 1e-2 * rows[1]])
    assert _along(rows, round_compensated(wide, left, torch.bfloat16).float()) <= 1e-4 * _along(rows, stored)


@pytest.mark.parametrize("left", [torch.zeros(0, 40), torch.zeros(2, 40)])
def test_without_a_direction_it_is_plain_rounding(left: torch.Tensor) -> None:
    wide = _random(6, 40, 7)
    assert torch.equal(round_compensated(wide, left, torch.bfloat16), wide.bfloat16())


def test_rows_that_weigh_nothing_leave_the_last_share_to_those_that_do() -> None:
    stored, left = round_nearest(_random(14, 2000, 32), torch.bfloat16).float(), _random(15, 1, 2000)
    left[:, 1000:] *= 1e-9
    left /= left.norm()
    wide = stored - left.T @ (left @ stored)
    assert _along(left, round_compensated(wide, left, torch.bfloat16).float()) <= 1e-5 * _along(left, stored)


def test_rows_off_the_direction_are_plain_and_zeros_stay_zero() -> None:
    wide, left = _random(7, 40, 7), _random(8, 1, 40)
    left[:, :10] = 0
    wide[20:30] = 0
    rounded = round_compensated(wide, left, torch.bfloat16)
    assert torch.equal(rounded[:10], wide[:10].bfloat16())
    assert not bool(rounded[20:30].any())


def test_rows_in_groups_are_stored_in_their_units() -> None:
    wide, left = _random(9, 300, 6), _random(10, 1, 300)
    units = torch.rand(3, 6, generator=torch.Generator().manual_seed(11)) + 0.1
    spread = units.repeat_interleave(100, 0)
    stored = round_compensated(wide, left, torch.bfloat16, units, 100).float() * spread
    plain = round_nearest(wide / spread, torch.bfloat16).float() * spread
    torch.testing.assert_close(stored, wide, rtol=2**-6, atol=0)
    assert _along(left, stored - wide) < 0.05 * _along(left, plain - wide)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    wide = _random(12, 5, 3)
    wide[2, 1] = bad
    with pytest.raises(InputError, match="NaN or infinity"):
        round_compensated(wide, _random(13, 1, 5), torch.bfloat16)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_empty_matrix_is_rounded_to_itself(shape: tuple[int, int]) -> None:
    assert round_compensated(torch.zeros(shape), torch.zeros(1, shape[0]), torch.bfloat16).shape == shape
