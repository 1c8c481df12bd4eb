"""A checkpoint's tensors as values to compute with: read from disk on demand, and dequantised if needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from abliterate.errors import InputError
from abliterate.model.folder import ModelFolder
from abliterate.model.formats.format import Shape, StoredFormat
from abliterate.model.formats.table import format_of
from abliterate.model.index import ShardIndex, TensorInfo
from abliterate.model.tensor_names import text_name


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
            return self.format.values([raw, *(self.index.read(name) for name in self._names[1:])])
        except InputError as error:
            raise InputError(f"{self.index.folder}: {self.name}: {error}") from None

    @property
    def format(self) -> StoredFormat:
        """How it is stored."""
        return format_of(self.index.tensors[self.name], self.folder.stored)

    @property
    def parts(self) -> list[TensorInfo]:
        """The stored tensors that it is made of, its own first, as far as they are there."""
        return [self.index.tensors[name] for name in self._names if name in self.index.tensors]

    @property
    def nbytes(self) -> int:
        """Bytes on disk, without its scales."""
        return self.index.tensors[self.name].nbytes

    @property
    def plain_name(self) -> str:
        """Its name in an unquantised checkpoint."""
        return self.format.matrix(self.name)

    @property
    def shape(self) -> Shape:
        """Its shape once it is dequantised."""
        shape = self.index.tensors[self.name].shape
        found = self.format.shape(shape)
        return shape if found is None else found

    @property
    def count(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    @property
    def _names(self) -> tuple[str, ...]:
        return self.format.parts(self.plain_name)


def stored(index: ShardIndex, folder: ModelFolder, names: Sequence[str]) -> list[Stored]:
    """The tensors of ``names`` except scales, which are read with the tensors that they scale."""
    return [Stored(index, folder, name) for name in names if folder.stored.matrix_of_companion(name) is None]


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
