"""FP8 with one scale a matrix, as Mistral stores Ministral 3, Devstral 2 and Mistral Medium 3.5.

Format (transformers, ``FineGrainedFP8Config`` with ``weight_block_size`` null): ``NAME.weight`` float8_e4m3fn [out, in] and the number
``NAME.weight_scale_inv`` in float32 or bfloat16; value = weight * scale. ``NAME.activation_scale``, a number for engines that compute in
FP8, belongs to the inputs of the matrix and is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import FineGrainedFP8Config

from abliterate.model.formats.format import Rounding, Shape, misfit
from abliterate.model.formats.fp8 import FP8, LARGEST, SCALES, dequantise, rounding_errors
from abliterate.model.formats.plain import EDITABLE
from abliterate.model.formats.rounding import round_compensated
from abliterate.model.index import DTYPES, TensorInfo

INPUTS = ".activation_scale"  # of the module of NAME.weight


@dataclass(frozen=True)
class TensorFp8:
    """An edited matrix stays FP8 and keeps its scale, unless a value would exceed the largest that the scale allows."""

    key: ClassVar[str] = "fp8-tensor"
    label: ClassVar[str] = "per-tensor FP8"
    types: ClassVar[tuple[str, ...]] = ()
    outside_key: ClassVar[str] = "modules_to_not_convert"

    @property
    def written(self) -> TensorFp8:
        return self

    @classmethod
    def of_config(cls, settings: Mapping[str, Any]) -> TensorFp8 | None:
        stated = settings.get("quant_method") == "fp8" and "weight_block_size" in settings
        return cls() if stated and settings["weight_block_size"] is None else None

    def loading(self) -> Any:
        return FineGrainedFP8Config(dequantize=True)

    def holds(self, info: TensorInfo) -> bool:
        return info.dtype == "F8_E4M3"

    def matrix(self, name: str) -> str:
        return name

    def matrix_of_companion(self, name: str) -> str | None:
        if name.endswith(INPUTS):
            return name.removesuffix(INPUTS) + ".weight"
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
        info, scale = tensors[matrix], tensors.get(matrix + SCALES)
        if (wrong := misfit(info, axis, d_model)) is not None:
            return wrong
        if scale is None or len(info.shape) != 2:
            return f"{matrix} is stored as FP8 without {matrix}{SCALES}, so its values are unknown"
        if math.prod(scale.shape) != 1 or scale.dtype not in EDITABLE:
            return f"{scale.name} is {scale.dtype} {list(scale.shape)}; without weight_block_size, it must be one number"
        return None

    def values(self, parts: Sequence[Tensor]) -> Tensor:
        weight, scale = parts
        return dequantise(weight, scale.reshape(1, -1), _whole(weight))

    def part_type(self, name: str, names: Collection[str]) -> str | None:
        if name.endswith((SCALES, INPUTS)):
            return "BF16"
        return "F8_E4M3" if name + SCALES in names else None

    def part_shape(self, name: str, shape_of: Callable[[str], Shape | None]) -> Shape | None:
        return () if name.endswith((SCALES, INPUTS)) else None

    def tolerance(self, stored: str) -> float:
        return 1e-3

    def again(self, stored: str) -> float:
        return 0.1  # one rounding that differs changes all later ones

    def held(self, numbers: int, nbytes: int) -> int:
        return nbytes + numbers * (torch.float32.itemsize + FP8.itemsize)

    def rewrite(self, parts: Sequence[Tensor], change: Callable[[Tensor], None], left: Float[Tensor, "k d_model"], where: str) -> Rounding:
        """Dequantise, change in float32, and round with error feedback along ``left``: whole, because all of it shares the scale."""
        stored, scale = parts
        wide = self.values(parts)
        change(wide)
        largest = float(torch.stack(wide.aminmax()).abs().max())
        if not 0 < largest <= LARGEST * float(scale):
            scale.fill_(largest / LARGEST or 1.0)
        unit = scale.float().reshape(1, 1)
        stored.copy_(round_compensated(wide, left.float(), FP8, unit.expand(1, wide.shape[1]), wide.shape[0]))
        return Rounding(*rounding_errors(wide, stored, unit, _whole(wide)))

    def encode(self, wide: Float[Tensor, "out columns"], stored: str) -> list[Tensor]:
        scale = wide.abs().max() / LARGEST
        return [(wide / scale).to(DTYPES[stored][0]), scale]


def _whole(matrix: Tensor) -> tuple[int, int]:
    """The matrix as a single block."""
    return matrix.shape[0], matrix.shape[1]
