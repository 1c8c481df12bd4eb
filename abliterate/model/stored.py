"""A checkpoint's tensors as values to compute with: read from disk on demand, and dequantised if needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from abliterate.errors import InputError
from abliterate.model.folder import ModelFolder
from abliterate.model.formats import fp8, mxfp4
from abliterate.model.index import ShardIndex
from abliterate.model.tensor_names import text_name

_SCALE = {"fp8": "_scale_inv", "mxfp4": "_scales"}
_PACKED = "_blocks"  # MXFP4: two values per byte


@dataclass(frozen=True)
class Stored:
    """A tensor that is read and dequantised when it is indexed with ``...``, as transformers indexes slices of safetensors.

    Raises InputError if its bytes are missing or its scales don't fit it.
    """

    index: ShardIndex
    folder: ModelFolder
    name: str

    def __getitem__(self, where: Any) -> Tensor:
        return self.values()

    def values(self, into: Tensor | None = None) -> Tensor:
        """Its values. ``into`` is a uint8 buffer of ``nbytes`` to read into; an unquantised tensor stays in it."""
        raw = self.index.read(self.name, into)
        try:
            if raw.dtype == fp8.FP8:
                return fp8.dequantise(raw, self.index.read(self.name + _SCALE["fp8"]), self.folder.fp8_block)
            if self._is_packed:
                return mxfp4.dequantise(raw, self.index.read(self.name.removesuffix(_PACKED) + _SCALE["mxfp4"]))
        except InputError as error:
            raise InputError(f"{self.index.folder}: {self.name}: {error}") from None
        return raw

    @property
    def nbytes(self) -> int:
        """Bytes on disk, without its scales."""
        return self.index.tensors[self.name].nbytes

    @property
    def plain_name(self) -> str:
        """Its name in an unquantised checkpoint."""
        return self.name.removesuffix(_PACKED) if self._is_packed else self.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape once it is dequantised."""
        shape = self.index.tensors[self.name].shape
        return (shape[0], 2 * shape[2] * shape[3], shape[1]) if self._is_packed and len(shape) == 4 else shape

    @property
    def count(self) -> int:
        """The number of its elements."""
        return math.prod(self.index.tensors[self.name].shape) * (2 if self._is_packed else 1)

    @property
    def _is_packed(self) -> bool:
        return self.folder.quantisation == "mxfp4" and self.name.endswith(_PACKED)


def stored(index: ShardIndex, folder: ModelFolder, names: Sequence[str]) -> list[Stored]:
    """The tensors of ``names`` except scales, which are read with the tensors that they scale."""
    scale = _SCALE.get(folder.quantisation or "")
    return [Stored(index, folder, name) for name in names if scale is None or not name.endswith(scale)]


def by_block(index: ShardIndex, folder: ModelFolder) -> dict[int | None, list[Stored]]:
    """The text model's tensors by the number of their block; None: tensors outside the blocks.

    Blocks of multi-token prediction are left out, because transformers doesn't run them. Raises InputError if a block has no tensors.
    """
    found: dict[int | None, list[str]] = {layer: [] for layer in range(folder.layers)} | {None: []}
    for name in index.tensors:
        text = text_name(name)
        where = folder.layout.in_block(text) if text is not None else None
        if text is not None and where is None:
            found[None].append(name)
        elif where is not None and not where[2] and where[0] < folder.layers:
            found[where[0]].append(name)
    empty = next((layer for layer in range(folder.layers) if not found[layer]), None)
    if empty is not None:
        raise InputError(f"{folder.path}: the checkpoint has no tensors of block {empty}; download it again")
    return {layer: stored(index, folder, names) for layer, names in found.items()}
