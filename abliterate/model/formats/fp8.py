"""Block-scaled FP8, as DeepSeek V3 and R1 store it.

Format (https://github.com/deepseek-ai/DeepSeek-V3, README_WEIGHTS.md): ``NAME.weight`` float8_e4m3fn [out, in] and
``NAME.weight_scale_inv`` float32 or bfloat16 [ceil(out/128), ceil(in/128)]; value = weight * scale of its 128 x 128 block; blocks at the
edges are smaller. Despite its name, the scale is not inverted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad
from transformers import FineGrainedFP8Config

from abliterate.errors import InputError
from abliterate.model.formats.format import Rounding, Shape, misfit
from abliterate.model.formats.plain import EDITABLE
from abliterate.model.formats.rounding import round_compensated, round_nearest
from abliterate.model.index import TensorInfo

FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # the largest e4m3 value
BLOCK = (128, 128)
BAND = 1 << 23  # elements of a matrix in float32 at once: 32 MB
SCALES = "_scale_inv"  # of NAME are NAME_scale_inv


@dataclass(frozen=True)
class BlockFp8:
    """Block-scaled FP8: the size of a block, and whether scales are powers of two (``scale_fmt`` ue8m0). An edited matrix stays FP8."""

    block: tuple[int, int] = BLOCK
    powers: bool = False

    key: ClassVar[str] = "fp8"
    label: ClassVar[str] = "FP8"
    types: ClassVar[tuple[str, ...]] = ("F8_E4M3",)
    outside_key: ClassVar[str] = "modules_to_not_convert"

    @property
    def written(self) -> BlockFp8:
        return self

    @classmethod
    def of_config(cls, settings: Mapping[str, Any]) -> BlockFp8 | None:
        block = settings.get("weight_block_size")
        if settings.get("quant_method") != "fp8" or not isinstance(block, list) or len(block) != 2:
            return None
        if not all(isinstance(size, int) and size > 0 for size in block):
            return None
        return cls((block[0], block[1]), settings.get("scale_fmt") == "ue8m0")

    def loading(self) -> Any:
        return FineGrainedFP8Config(dequantize=True)

    def holds(self, info: TensorInfo) -> bool:
        return info.dtype == "F8_E4M3"

    def matrix(self, name: str) -> str:
        return name

    def matrix_of_companion(self, name: str) -> str | None:
        return name.removesuffix(SCALES) if name.endswith(SCALES) else None

    def parts(self, matrix: str) -> tuple[str, ...]:
        return (matrix, matrix + SCALES)

    def shape(self, stored: Shape) -> Shape:
        return stored

    def value_type(self, stored: str) -> str:
        return "F32"

    def bits(self, stored: str) -> int:
        return 4

    def fault(self, matrix: str, tensors: Mapping[str, TensorInfo], axis: int, d_model: int) -> str | None:
        info, scales = tensors[matrix], tensors.get(matrix + SCALES)
        if (wrong := misfit(info, axis, d_model)) is not None:
            return wrong
        if scales is None or len(info.shape) != 2:
            return f"{matrix} is stored as FP8 without {matrix}{SCALES}, so its values are unknown"
        blocks = _blocks(info.shape, self.block)
        if scales.shape != blocks or scales.dtype not in (*EDITABLE, "F8_E8M0"):
            return f"{scales.name} is {scales.dtype} {list(scales.shape)}, blocks {list(self.block)} need {list(blocks)}"
        return None

    def values(self, parts: Sequence[Tensor]) -> Tensor:
        return dequantise(parts[0], parts[1], self.block)

    def part_type(self, name: str, names: Collection[str]) -> str | None:
        if name.endswith(SCALES):
            return "F32"
        return "F8_E4M3" if name + SCALES in names else None

    def part_shape(self, name: str, shape_of: Callable[[str], Shape | None]) -> Shape | None:
        if not name.endswith(SCALES):
            return None
        return _blocks((*(shape_of(name.removesuffix(SCALES)) or ()), 1, 1)[:2], self.block)

    def tolerance(self, stored: str) -> float:
        return 1e-3

    def again(self, stored: str) -> float:
        return 0.1  # one rounding that differs changes all later ones

    def held(self, numbers: int, nbytes: int) -> int:
        return nbytes  # and a band, which is small beside it

    def rewrite(self, parts: Sequence[Tensor], change: Callable[[Tensor], None], left: Float[Tensor, "k d_model"], where: str) -> Rounding:
        """Dequantise, change in float32, and round per block with error feedback along ``left``, one band of columns at a time."""
        stored, scales = parts
        across = self.block[1]
        band = max(1, BAND // (stored.shape[0] * across)) * across
        costs = []
        for start in range(0, stored.shape[1], band):
            columns, blocks = slice(start, start + band), slice(start // across, -(-(start + band) // across))
            wide = dequantise(stored[:, columns], scales[:, blocks], self.block)
            change(wide)
            weight, new = requantise(wide, left.float(), self.block, scales.dtype, self.powers)
            rounding, plain = rounding_errors(wide, weight, new, self.block)
            stored[:, columns], scales[:, blocks] = weight, new
            exact = float(wide.norm())
            costs.append((exact, rounding * exact, plain * exact))
        exact, rounding, plain = (math.hypot(*values) for values in zip(*costs, strict=True))
        return Rounding(rounding / exact, plain / exact) if exact else Rounding(0.0, 0.0)

    def encode(self, wide: Float[Tensor, "out columns"], stored: str) -> list[Tensor]:
        return [*requantise(wide, torch.zeros(0, wide.shape[0]), self.block, powers=self.powers)]


def _blocks(shape: Shape, block: tuple[int, int]) -> Shape:
    """How many blocks cover a matrix, edges included."""
    return tuple(math.ceil(size / side) for size, side in zip(shape, block, strict=True))


def dequantise(weight: Tensor, scales: Tensor, block: tuple[int, int] = BLOCK) -> Float[Tensor, "out columns"]:
    """The float32 values of a stored matrix. Raises InputError if it isn't e4m3, or its scales have the wrong shape or aren't finite."""
    if weight.dtype != FP8 or weight.ndim != 2:
        kind = str(weight.dtype).removeprefix("torch.")
        raise InputError(f"block-scaled FP8 weights must be matrices of float8_e4m3fn; this one is {list(weight.shape)} of {kind}")
    blocks = _blocks(tuple(weight.shape), block)
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
