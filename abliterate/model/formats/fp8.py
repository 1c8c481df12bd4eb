"""Block-scaled FP8, as DeepSeek V3 and R1 store it.

Format (https://github.com/deepseek-ai/DeepSeek-V3, README_WEIGHTS.md): ``NAME.weight`` float8_e4m3fn [out, in] and
``NAME.weight_scale_inv`` float32 or bfloat16 [ceil(out/128), ceil(in/128)]; value = weight * scale of its 128 x 128 block; blocks at the
edges are smaller. Despite its name, the scale is not inverted.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from abliterate.errors import InputError
from abliterate.model.formats.rounding import round_compensated, round_nearest

FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # the largest e4m3 value
BLOCK = (128, 128)


def dequantise(weight: Tensor, scales: Tensor, block: tuple[int, int] = BLOCK) -> Float[Tensor, "out columns"]:
    """The float32 values of a stored matrix. Raises InputError if it isn't e4m3, or its scales have the wrong shape or aren't finite."""
    if weight.dtype != FP8 or weight.ndim != 2:
        kind = str(weight.dtype).removeprefix("torch.")
        raise InputError(f"block-scaled FP8 weights must be matrices of float8_e4m3fn; this one is {list(weight.shape)} of {kind}")
    blocks = (math.ceil(weight.shape[0] / block[0]), math.ceil(weight.shape[1] / block[1]))
    if scales.shape != blocks:
        raise InputError(
            f"an FP8 matrix {list(weight.shape)} in blocks {list(block)} needs scales {list(blocks)}; these are {list(scales.shape)}"
        )
    if not bool(scales.isfinite().all()):
        raise InputError("the scales of an FP8 matrix hold NaN or infinity; the checkpoint is damaged")
    wide = weight.to(torch.float32)
    for band, units in zip(torch.split(wide, block[0]), _by_column(scales, block, weight.shape[1]), strict=True):
        band.mul_(units)
    return wide


def requantise(
    wide: Float[Tensor, "out columns"],
    left: Float[Tensor, "k out"],
    block: tuple[int, int] = BLOCK,
    scales_dtype: torch.dtype = torch.float32,
    powers: bool = False,
) -> tuple[Float[Tensor, "out columns"], Tensor]:
    """Quantise to (weight in e4m3, scales in ``scales_dtype``), rounded so that ``left`` @ stored stays ``left`` @ wide.

    ``left`` holds the removed directions (for a writer followed by a norm: times the norm's weight), of any length. A block's scale is
    its largest magnitude / 448, or 1 if the block is all zero; ``powers`` rounds it up to a power of two (``scale_fmt`` ue8m0). Raises
    InputError if ``wide`` holds NaN or infinity.
    """
    scales = _scales(wide, block, scales_dtype, powers or scales_dtype == torch.float8_e8m0fnu)
    return round_compensated(wide, left, FP8, _by_column(scales, block, wide.shape[1]), block[0]), scales


def rounding_errors(
    wide: Float[Tensor, "out columns"],
    weight: Float[Tensor, "out columns"],
    scales: Tensor,
    block: tuple[int, int] = BLOCK,
) -> tuple[float, float]:
    """Relative Frobenius errors against the exact ``wide``: of the stored matrix, and of rounding to nearest with the same scales."""
    stored = nearest = total = 0.0
    units = _by_column(scales, block, wide.shape[1])
    for exact, codes, unit in zip(torch.split(wide.float(), block[0]), torch.split(weight, block[0]), units, strict=True):
        total += float(exact.norm()) ** 2
        stored += float((codes.float() * unit - exact).norm()) ** 2
        nearest += float((round_nearest(exact / unit, FP8).float() * unit - exact).norm()) ** 2
    return (math.sqrt(stored / total), math.sqrt(nearest / total)) if total else (0.0, 0.0)


def _scales(wide: Float[Tensor, "out columns"], block: tuple[int, int], dtype: torch.dtype, powers: bool) -> Tensor:
    largest = []
    for band in torch.split(wide, block[0]):
        by_column = torch.maximum(band.amax(0), -band.amin(0)).float()
        largest.append(pad(by_column, (0, -len(by_column) % block[1])).view(-1, block[1]).amax(1))
    amax = torch.stack(largest)
    # A scale below the smallest normal number would be too coarse, or zero.
    scales = torch.where(amax == 0, 1.0, (amax / LARGEST).clamp(min=torch.finfo(dtype).tiny))
    return (torch.exp2(scales.log2().ceil()) if powers else scales).to(dtype)


def _by_column(scales: Tensor, block: tuple[int, int], columns: int) -> Float[Tensor, "down columns"]:
    """Each column's scale in float32, one row per row of blocks."""
    return scales.float().repeat_interleave(block[1], 1)[:, :columns]
