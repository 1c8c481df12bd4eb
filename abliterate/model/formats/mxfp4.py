"""MXFP4, as gpt-oss stores its experts: four-bit values that share a scale in groups of 32.

Format (OCP Microscaling Formats 1.0): ``NAME_blocks`` uint8 [expert, rows, groups, 16] holds two values (sign, 2 bits exponent, 1 bit
mantissa: e2m1) per byte, the low four bits first; ``NAME_scales`` uint8 [expert, rows, groups] holds exponents with bias 127. Rows are the
outputs; transformers computes with the transpose, [expert, in, out].
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.errors import InputError

BYTES = 16  # per group
BIAS = 127
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = (*_MAGNITUDES, *(-m for m in _MAGNITUDES))


def dequantise(blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16) -> Float[Tensor, "experts columns rows"]:
    """The values in ``dtype``, [expert, in, out] with in = 32 * groups, bit for bit what transformers loads.

    Needs scratch memory for one expert. Raises InputError if the two aren't uint8, or if their shapes don't belong together.
    """
    if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8:
        kinds = " and ".join(str(t.dtype).removeprefix("torch.") for t in (blocks, scales))
        raise InputError(f"MXFP4 blocks and scales must be uint8; these are {kinds}")
    if blocks.ndim != 4 or blocks.shape[-1] != BYTES or blocks.shape[:-1] != scales.shape:
        raise InputError(
            f"MXFP4 blocks must be [expert, rows, groups, {BYTES}] and scales [expert, rows, groups]; "
            f"these are {list(blocks.shape)} and {list(scales.shape)}"
        )
    experts, rows, groups, _ = blocks.shape
    wide = torch.empty(experts, groups * 2 * BYTES, rows, dtype=dtype)
    # Look up both values of a byte at once, which halves the look-ups.
    code = torch.arange(256)
    pairs = torch.tensor(VALUES, dtype=dtype)[torch.stack([code & 15, code >> 4], 1)]
    for target, packed, exponents in zip(wide, blocks, scales, strict=True):
        values = torch.ldexp(pairs[packed.int()].flatten(2), exponents.int()[:, :, None] - BIAS)
        target.copy_(values.flatten(1).T)
    return wide
