"""Block-scaled FP8: read exactly, written so that a removed direction stays removed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.errors import InputError
from abliterate.model.formats.fp8 import FP8, dequantise, requantise, rounding_errors


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _along(left: torch.Tensor, matrix: torch.Tensor) -> float:
    return float((left.double() @ matrix.double()).norm())


def _plain(wide: torch.Tensor, block: tuple[int, int] = (128, 128)) -> torch.Tensor:
    return dequantise(*requantise(wide, torch.zeros(0, wide.shape[0]), block), block)


def _rows(k: int, d_model: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(_random(seed, d_model, k).double()).Q.T.float().contiguous()


def test_each_block_has_its_own_scale_and_edge_blocks_are_smaller() -> None:
    weight = torch.ones(5, 7).to(FP8)
    scales = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    wide = dequantise(weight, scales, (3, 3))
    expected = torch.tensor([[1, 1, 1, 2, 2, 2, 3]] * 3 + [[4, 4, 4, 5, 5, 5, 6]] * 2, dtype=torch.float32)
    assert wide.dtype == torch.float32 and torch.equal(wide, expected)


@pytest.mark.parametrize("scales_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(256, 256), (130, 257), (1, 1), (127, 300)])
def test_representable_values_come_back_exactly(shape: tuple[int, int], scales_dtype: torch.dtype) -> None:
    codes = (_random(0, *shape) * 100).clamp(-448, 448).to(FP8)
    codes[::128, ::128] = torch.tensor(448.0).to(FP8)  # every block's largest
    blocks = (-(-shape[0] // 128), -(-shape[1] // 128))
    # Of few bits, so that 448 times a scale is a float32 too.
    scales = (torch.rand(blocks, generator=torch.Generator().manual_seed(1)) + 0.01).bfloat16().to(scales_dtype)
    wide = dequantise(codes, scales)
    weight, again = requantise(wide, _random(2, 2, shape[0]), (128, 128), scales_dtype)
    assert weight.dtype == FP8 and again.dtype == scales_dtype
    assert torch.equal(again, scales)
    assert torch.equal(weight.float(), codes.float())


def _check_scales(wide: torch.Tensor, block: tuple[int, int], scales_dtype: torch.dtype) -> None:
    weight, scales = requantise(wide, _random(3, 1, wide.shape[0]), block, scales_dtype)
    assert scales.shape == (-(-wide.shape[0] // block[0]), -(-wide.shape[1] // block[1]))
    assert bool(scales.isfinite().all()) and bool((scales > 0).all())
    assert bool(weight.float().isfinite().all()) and float(weight.float().abs().max()) <= 448
    step = torch.maximum(wide.abs() / 8, scales.float().max() * 2.0**-9)  # of the nearest value's upper side
    assert bool(((dequantise(weight, scales, block) - wide).abs() <= 2 * step).all())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 20),
    st.sampled_from([(8, 8), (4, 16), (128, 128)]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([1e-38, 1e-20, 1.0, 1e30]),
    st.integers(0, 9999),
)
def test_scales_are_positive_and_finite_and_nothing_overflows(
    out: int, columns: int, block: tuple[int, int], scales_dtype: torch.dtype, size: float, seed: int
) -> None:
    _check_scales(_random(seed, out, columns) * size, block, scales_dtype)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 4), st.integers(0, 9999))
def test_small_matrices_end_no_worse_than_plain_but_for_a_rounding_step(out: int, columns: int, k: int, seed: int) -> None:
    wide, left = _random(seed, out, columns), _random(seed + 1, k, out)
    weight, scales = requantise(wide, left, (16, 16))
    ours, plain = dequantise(weight, scales, (16, 16)), _plain(wide, (16, 16))
    step = 32 * float(scales.max())  # the largest step of e4m3
    slack = float(left.norm(dim=0).max()) * step * columns**0.5
    assert bool(ours.isfinite().all())
    assert _along(left, ours - wide) <= _along(left, plain - wide) + slack


@pytest.mark.parametrize(("k", "bound"), [(1, 1e-5), (2, 1e-4), (4, 1e-3)])
def test_a_removed_direction_stays_removed(k: int, bound: float) -> None:
    stored, rows = _plain(_random(4, 7168, 256) * 0.02), _rows(k, 7168, 5)
    wide = stored - rows.T @ (rows @ stored)
    weight, scales = requantise(wide, rows)
    ours, plain = dequantise(weight, scales), _plain(wide)
    assert _along(rows, plain) > 0.2 * _along(rows, stored)  # what rounding to nearest does
    assert _along(rows, ours) <= bound * _along(rows, stored)
    assert _along(rows, ours) <= bound * float(stored.norm())
    mine, nearest = rounding_errors(wide, weight, scales)
    assert nearest < mine < 1.5 * nearest


def test_the_product_with_rows_of_any_length_is_kept_for_an_edit_that_is_not_along_them() -> None:
    """A writer before a norm of weight g: R diag(g) @ W' = 0 with W' = D^-1 (I - R^T R) D W."""
    stored, rows = _plain(_random(6, 2048, 256)), _rows(2, 2048, 7)
    gain = torch.rand(2048, generator=torch.Generator().manual_seed(8)) * 3 + 0.2
    left = rows * gain
    wide = stored - (rows.T @ (left @ stored)) / gain[:, None]
    ours = dequantise(*requantise(wide, left))
    assert _along(left, _plain(wide)) > 0.05 * _along(left, stored)
    assert _along(left, ours) <= 1e-3 * _along(left, stored)


def test_zeros_stay_zero_and_a_zero_block_has_the_scale_one() -> None:
    wide = _random(9, 256, 256)
    wide[:128, :128] = 0
    weight, scales = requantise(wide, _random(10, 1, 256))
    assert scales[0, 0] == 1 and bool((scales.flatten()[1:] < 1).all())
    assert not bool(weight[:128, :128].float().any())
    weight, scales = requantise(torch.zeros(130, 5), _random(11, 1, 130))
    assert not bool(weight.float().any()) and scales.tolist() == [[1.0], [1.0]]
    assert rounding_errors(torch.zeros(130, 5), weight, scales) == (0.0, 0.0)


@pytest.mark.parametrize("value", [0.3, -0.3, 1e-30])
def test_a_block_of_equal_values_is_exact_in_the_largest_code(value: float) -> None:
    weight, scales = requantise(torch.full((128, 128), value), _random(12, 1, 128))
    assert weight.float().abs().unique().tolist() == [448.0]
    torch.testing.assert_close(dequantise(weight, scales), torch.full((128, 128), value), rtol=1e-6, atol=0)


def test_errors_are_relative_to_the_exact_edit() -> None:
    wide = _random(13, 200, 150)
    weight, scales = requantise(wide, _random(14, 1, 200), (64, 64))
    mine, nearest = rounding_errors(wide, weight, scales, (64, 64))
    size = float(wide.norm())
    assert mine == pytest.approx(float((dequantise(weight, scales, (64, 64)) - wide).norm()) / size, rel=1e-4)
    assert nearest == pytest.approx(float((_plain(wide, (64, 64)) - wide).norm()) / size, rel=1e-4)


@pytest.mark.parametrize(
    ("weight", "scales", "says"),
    [
        (torch.zeros(4, 4), torch.ones(1, 1), "float32"),
        (torch.zeros(2, 4, 4).to(FP8), torch.ones(1, 1), r"\[2, 4, 4\]"),
        (torch.zeros(129, 4).to(FP8), torch.ones(1, 1), r"\[2, 1\]"),
        (torch.zeros(4, 4).to(FP8), torch.full((1, 1), torch.nan), "NaN"),
    ],
)
def test_what_is_not_block_scaled_fp8_is_refused_in_one_line(weight: torch.Tensor, scales: torch.Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        dequantise(weight, scales)
    assert "\n" not in str(error.value)


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="NaN or infinity"):
        requantise(torch.full((3, 3), torch.nan), torch.ones(1, 3))
