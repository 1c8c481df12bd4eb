"""MXFP4 as transformers reads it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from abliterate.errors import InputError
from abliterate.model.formats.mxfp4 import dequantise


def _packed(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, signs of zeros too; NaN is equal to itself."""
    return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    st.integers(0, 999),
)
def test_values_are_those_of_transformers(experts: int, rows: int, groups: int, dtype: torch.dtype, seed: int) -> None:
    blocks, scales = _packed(seed, experts, rows, groups, 16), _packed(seed + 1, experts, rows, groups)
    ours = dequantise(blocks, scales, dtype)
    assert ours.shape == (experts, groups * 32, rows) and ours.dtype == dtype and ours.is_contiguous()
    assert _same_bits(ours, convert_moe_packed_tensors(blocks, scales, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_byte_with_every_scale_is_what_transformers_gives(dtype: torch.dtype) -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 256, 16, 16).contiguous()
    scales = torch.arange(256, dtype=torch.uint8).view(1, 256, 1).expand(1, 256, 16).contiguous()
    expected = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
    assert _same_bits(dequantise(blocks, scales, dtype), expected)


def test_the_low_four_bits_come_first_and_the_bias_is_127() -> None:
    blocks = torch.zeros(1, 1, 1, 16, dtype=torch.uint8)
    blocks[..., 0], blocks[..., 1] = 0x72, 0xF9  # 1.0 then 6.0; -0.5 then -6.0
    wide = dequantise(blocks, torch.full((1, 1, 1), 129, dtype=torch.uint8))
    assert wide.shape == (1, 32, 1) and wide[0, :5, 0].tolist() == [4.0, 24.0, -2.0, -24.0, 0.0]


@pytest.mark.parametrize(
    ("blocks", "scales", "says"),
    [
        ((2, 3, 4, 16), (2, 3, 5), r"\[2, 3, 5\]"),
        ((2, 3, 4, 8), (2, 3, 4), r"\[2, 3, 4, 8\]"),
        ((3, 4, 16), (3, 4), r"\[3, 4, 16\]"),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused_in_one_line(blocks: tuple[int, ...], scales: tuple[int, ...], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        dequantise(_packed(0, *blocks), _packed(1, *scales))
    assert "\n" not in str(error.value)


def test_other_types_than_bytes_are_refused() -> None:
    with pytest.raises(InputError, match="uint8 and float32"):
        dequantise(_packed(0, 1, 2, 3, 16), torch.ones(1, 2, 3))
