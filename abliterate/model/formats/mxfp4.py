"""MXFP4, as gpt-oss stores its experts: four-bit values that share a scale in groups of 32.

Format (OCP Microscaling Formats 1.0): ``NAME_blocks`` uint8 [expert, rows, groups, 16] holds two values (sign, 2 bits exponent, 1 bit
mantissa: e2m1) per byte, the low four bits first; ``NAME_scales`` uint8 [expert, rows, groups] holds exponents with bias 127. Rows are the
outputs; transformers computes with the transpose, [expert, in, out].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.utils.quantization_config import Mxfp4Config

from abliterate.errors import InputError
from abliterate.model.formats.format import Shape
from abliterate.model.formats.plain import PLAIN, Plain
from abliterate.model.index import TensorInfo

BLOCKS, EXPONENTS = "_blocks", "_scales"  # NAME is stored as NAME_blocks and NAME_scales
BYTES = 16  # per group
BIAS = 127
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = (*_MAGNITUDES, *(-m for m in _MAGNITUDES))


@dataclass(frozen=True)
class Mxfp4:
    """MXFP4 experts. An edit is far below a step of four bits, so edited experts are stored as bf16, [expert, in, out]."""

    key: ClassVar[str] = "mxfp4"
    label: ClassVar[str] = "MXFP4"
    types: ClassVar[tuple[str, ...]] = ()  # bytes mean many things
    outside_key: ClassVar[str] = "modules_to_not_convert"

    @property
    def written(self) -> Plain:
        return PLAIN

    @classmethod
    def of_config(cls, settings: Mapping[str, Any]) -> Mxfp4 | None:
        return cls() if settings.get("quant_method") == "mxfp4" else None

    def loading(self) -> Any:
        return Mxfp4Config(dequantize=True)

    def holds(self, info: TensorInfo) -> bool:
        return info.name.endswith(BLOCKS)

    def matrix(self, name: str) -> str:
        return name.removesuffix(BLOCKS)

    def matrix_of_companion(self, name: str) -> str | None:
        return name.removesuffix(EXPONENTS) if name.endswith(EXPONENTS) else None

    def parts(self, matrix: str) -> tuple[str, ...]:
        return (matrix + BLOCKS, matrix + EXPONENTS)

    def shape(self, stored: Shape) -> Shape | None:
        if len(stored) != 4:
            return None
        experts, rows, groups, packed = stored
        return (experts, 2 * groups * packed, rows)

    def value_type(self, stored: str) -> str:
        return "BF16"

    def bits(self, stored: str) -> int:
        return 2

    def fault(self, matrix: str, tensors: Mapping[str, TensorInfo], axis: int, d_model: int) -> str | None:
        shape = tensors[matrix + BLOCKS].shape
        lost = matrix + EXPONENTS not in tensors or matrix in tensors
        if lost or len(shape) != 4 or shape[1] != d_model or axis != 2 or 0 in shape:
            return f"{matrix}{BLOCKS} has shape {list(shape)}, or its scales are missing"
        return None

    def values(self, parts: Sequence[Tensor]) -> Tensor:
        return dequantise(parts[0], parts[1])

    def part_type(self, name: str, names: Collection[str]) -> str | None:
        return "U8" if name.endswith((BLOCKS, EXPONENTS)) else None

    def part_shape(self, name: str, shape_of: Callable[[str], Shape | None]) -> Shape | None:
        if not name.endswith((BLOCKS, EXPONENTS)):
            return None
        experts, columns, rows = shape_of(name.removesuffix(BLOCKS).removesuffix(EXPONENTS)) or (0, 0, 0)
        groups = (experts, rows, columns // (2 * BYTES))
        return (*groups, BYTES) if name.endswith(BLOCKS) else groups


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
