"""Matrices stored as they are, in a floating type (bf16, fp16, fp32, fp64); also how tensors of other types are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.errors import InputError
from abliterate.model.formats.format import Shape, misfit
from abliterate.model.index import DTYPES, TensorInfo

EDITABLE = ("F64", "F32", "F16", "BF16")
_TOLERANCE = {"F64": 1e-6, "F32": 1e-6, "F16": 1e-3, "BF16": 1e-3}
_BITS = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8, "F8_E4M3": 4, "F8_E5M2": 3}


@dataclass(frozen=True)
class Plain:
    """Every tensor is a matrix of its own, edited in its own type and rounded once."""

    key: ClassVar[str] = "plain"
    label: ClassVar[str] = "unquantised"
    types: ClassVar[tuple[str, ...]] = ()
    outside_key: ClassVar[str] = ""

    @property
    def written(self) -> Plain:
        return self

    @classmethod
    def of_config(cls, settings: Mapping[str, Any]) -> Plain | None:
        return None if settings else cls()

    def loading(self) -> None:
        return None

    def holds(self, info: TensorInfo) -> bool:
        return True  # asked last

    def matrix(self, name: str) -> str:
        return name

    def matrix_of_companion(self, name: str) -> str | None:
        return None

    def parts(self, matrix: str) -> tuple[str, ...]:
        return (matrix,)

    def shape(self, stored: Shape) -> Shape:
        return stored

    def value_type(self, stored: str) -> str:
        return stored

    def bits(self, stored: str) -> int:
        return _BITS.get(stored, 53)

    def fault(self, matrix: str, tensors: Mapping[str, TensorInfo], axis: int, d_model: int) -> str | None:
        info = tensors[matrix]
        if (wrong := misfit(info, axis, d_model)) is not None:
            return wrong
        if info.dtype not in EDITABLE:
            return f"{matrix} is stored as {info.dtype}, which can't be edited; use a bf16, fp16 or fp32 checkpoint"
        return None

    def values(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0]

    def part_type(self, name: str, names: Collection[str]) -> str | None:
        return None

    def part_shape(self, name: str, shape_of: Callable[[str], Shape | None]) -> Shape | None:
        return None

    def tolerance(self, stored: str) -> float:
        return _TOLERANCE[stored]

    def again(self, stored: str) -> float:
        return _TOLERANCE[stored]

    def held(self, numbers: int, nbytes: int) -> int:
        return nbytes

    def rewrite(self, parts: Sequence[Tensor], change: Callable[[Tensor], None], left: Float[Tensor, "k d_model"], where: str) -> None:
        change(parts[0])
        if parts[0].dtype == torch.float16 and not torch.isfinite(torch.stack(parts[0].aminmax())).all():
            raise InputError(f"{where} exceeds the range of F16 after the edit; use a bf16 or fp32 checkpoint")

    def encode(self, wide: Float[Tensor, "out columns"], stored: str) -> list[Tensor]:
        return [wide.to(DTYPES[stored][0])]


PLAIN = Plain()
