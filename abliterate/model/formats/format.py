"""What the program asks a stored number format: the one protocol that every module in this folder implements.

A matrix has one name in the model; on disk it is one main tensor and, in some formats, companions (scales). A format knows their names,
shapes and types, reads the values, and says how an edited matrix is stored. ``table.py`` lists the formats.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from abliterate.model.index import TensorInfo

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rounding:
    """What rounding costs, as errors relative to the exact matrix: of the ``stored`` one, and if each value were rounded to the
    ``nearest``."""

    stored: float
    nearest: float


@runtime_checkable
class StoredFormat(Protocol):
    """How matrices are stored, with the settings that the config gives."""

    @property
    def key(self) -> str:
        """Its name in records and in the forecast's JSON."""

    @property
    def label(self) -> str:
        """Its name in sentences."""

    @property
    def types(self) -> Collection[str]:
        """Stored types that this format alone gives a meaning: they are recognised even if the config names no format."""

    @property
    def outside_key(self) -> str:
        """The key of ``quantization_config`` that lists the modules which are not in the format."""

    @property
    def written(self) -> InPlace:
        """The format of a matrix once it is edited: this one, or another if an edit can't be stored in it."""

    @classmethod
    def of_config(cls, settings: Mapping[str, Any]) -> StoredFormat | None:
        """The format that a ``quantization_config`` describes; None if it describes another."""

    def loading(self) -> Any:
        """The ``quantization_config`` that makes transformers load the values; None: it needs none."""

    def holds(self, info: TensorInfo) -> bool:
        """Whether a stored tensor is the main tensor of a matrix in this format."""

    def matrix(self, name: str) -> str:
        """The matrix whose main tensor ``name`` is; any other name is returned unchanged."""

    def matrix_of_companion(self, name: str) -> str | None:
        """The matrix that a companion belongs to; None for a tensor that is no companion."""

    def parts(self, matrix: str) -> tuple[str, ...]:
        """The stored tensors that make a matrix: the main tensor, then the companions that its values need."""

    def shape(self, stored: Shape) -> Shape | None:
        """The shape of a matrix from that of its main tensor; None if a main tensor can't have this shape."""

    def value_type(self, stored: str) -> str:
        """The type of ``values``, as safetensors calls it, from that of the main tensor."""

    def bits(self, stored: str) -> int:
        """Bits of the significand of the stored values, including the leading bit, from the type of the main tensor."""

    def fault(self, matrix: str, tensors: Mapping[str, TensorInfo], axis: int, d_model: int) -> str | None:
        """What keeps a writer with d_model at ``axis`` from being read and edited, in words; None: nothing."""

    def values(self, parts: Sequence[Tensor]) -> Tensor:
        """The values of a matrix. Raises InputError if its parts don't belong together."""

    def part_type(self, name: str, names: Collection[str]) -> str | None:
        """The type of a tensor of a checkpoint with these ``names``, without its header; None if it is stored plainly."""

    def part_shape(self, name: str, shape_of: Callable[[str], Shape | None]) -> Shape | None:
        """The shape of a part from that of its matrix, without its header; None if it is the matrix's own shape."""


@runtime_checkable
class InPlace(StoredFormat, Protocol):
    """A format that an edited matrix can be stored in."""

    def tolerance(self, stored: str) -> float:
        """How far the component along the directions may be from its aim, relative to the norm, by the type of the main tensor."""

    def again(self, stored: str) -> float:
        """How far the same edit on another machine may be from this one, relative to the norm: another order of sums changes roundings."""

    def held(self, numbers: int, nbytes: int) -> int:
        """Bytes in memory while a matrix is edited, from its number of elements and the bytes of its parts."""

    def rewrite(
        self, parts: Sequence[Tensor], change: Callable[[Tensor], None], left: Float[Tensor, "k d_model"], where: str
    ) -> Rounding | None:
        """Store what ``change`` makes of the values, in the memory of ``parts``, so that ``left`` @ stored stays ``left`` @ changed.

        ``change`` edits a tensor in place; it gets the whole matrix, or one band of its columns after another. Raises InputError, with
        the tensor's name ``where``, if the result can't be stored. Returns None where rounding is too fine to be worth telling.
        """

    def encode(self, wide: Float[Tensor, "out columns"], stored: str) -> list[Tensor]:
        """The parts that store a float32 matrix, rounded to nearest; ``stored``: the type of the main tensor."""


def misfit(info: TensorInfo, axis: int, d_model: int) -> str | None:
    """What is wrong with the shape of a writer that is stored with the axes of its matrix; None: nothing."""
    if 0 <= axis < len(info.shape) and info.shape[axis] == d_model and 0 not in info.shape:
        return None
    return f"{info.name} has shape {list(info.shape)}; axis {axis} must be {d_model}"
