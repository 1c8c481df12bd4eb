"""KV caches of the rows that are being written: a fixed place for each row, or a cache that only grows and loses rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import CacheLayerMixin

from abliterate.compute.prefix import DummyLayer, Following, Prefix, before


@dataclass
class CacheRegion:
    """Where the next keys and values go: their rows and columns. ``past`` columns come before them."""

    rows: slice
    columns: slice
    past: int


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One block's keys and values, [row, head, column, dim], in memory that is allocated once.

    Every row's first columns hold the prefix; the own tokens of all rows end at the same column.
    """

    keys: Any
    values: Any

    def __init__(self, place: CacheRegion, size: tuple[int, int], prefix: Following | None, is_sliding: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.place, self.size, self.prefix, self.is_sliding = place, size, prefix, is_sliding

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, columns = self.size
        made = []
        for own in (key_states, value_states):  # zeros, since masked values are still multiplied by zero
            made.append(own.new_zeros(rows, own.shape[1], columns, own.shape[3]))
        self.keys, self.values = made
        if self.prefix is not None:
            self.keys[:, :, : self.prefix.keys.shape[2]] = self.prefix.keys
            self.values[:, :, : self.prefix.values.shape[2]] = self.prefix.values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self.place
        self.keys[place.rows, :, place.columns] = key_states
        self.values[place.rows, :, place.columns] = value_states
        if place.columns.start == place.past:
            return self.keys[place.rows, :, : place.columns.stop], self.values[place.rows, :, : place.columns.stop]
        if self.prefix is None:
            return key_states, value_states
        return before(self.prefix.keys, key_states), before(self.prefix.values, value_states)

    def get_seq_length(self) -> int:
        return self.place.past

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.place.past + query_length, 0

    def get_max_length(self) -> int:
        return self.size[1]


class Slots:
    """Rows that are replaced: a finished row leaves its place to another one."""

    refills = True

    def __init__(self, config: PretrainedConfig, prefix: Prefix | None, rows: int, columns: int) -> None:
        self._place = CacheRegion(slice(0, 0), slice(0, 0), 0)
        self._prefix = prefix.length if prefix is not None else 0
        kinds: Sequence[Any] = DynamicCache(config=config).layers
        shared: Sequence[Any] = prefix.layers if prefix is not None else [None] * len(kinds)
        self.cache = Cache(
            layers=[
                kind if isinstance(kind, DummyLayer) else SlotLayer(self._place, (rows, columns), own, kind.is_sliding)
                for kind, own in zip(kinds, shared, strict=True)
            ]
        )

    @property
    def _layers(self) -> list[SlotLayer]:
        return [layer for layer in self.cache.layers if isinstance(layer, SlotLayer) and layer.is_initialized]

    def entering(self, rows: slice, columns: slice) -> None:
        """The next pass computes new rows, whose own tokens go to these columns."""
        self._place.rows, self._place.columns, self._place.past = rows, columns, self._prefix

    def going_on(self, rows: int, column: int) -> None:
        """The next pass adds this column to the first rows."""
        self._place.rows, self._place.columns, self._place.past = slice(0, rows), slice(column, column + 1), column

    def reorder(self, order: Sequence[int], column: int) -> None:
        """Row ``i`` becomes what row ``order[i]`` was, up to ``column``."""
        moved = [(new, old) for new, old in enumerate(order) if new != old]
        if moved:
            to, source = (list(side) for side in zip(*moved, strict=True))
            for layer in self._layers:
                layer.keys[to, :, :column] = layer.keys[source, :, :column]
                layer.values[to, :, :column] = layer.values[source, :, :column]

    def shift(self, rows: int, by: int, column: int) -> None:
        """Move the columns after the prefix, up to ``column``, to the left by ``by``."""
        start = self._prefix
        for layer in self._layers:
            for kept in (layer.keys, layer.values):
                kept[:rows, :, start : column - by] = kept[:rows, :, start + by : column].clone()


class GrowingCache:
    """The cache that transformers makes for an architecture. Rows enter together and leave one by one."""

    refills = False

    def __init__(self, config: PretrainedConfig) -> None:
        self._config = config
        self.cache: Cache = DynamicCache(config=config)

    def entering(self, rows: slice, columns: slice) -> None:
        self.cache = DynamicCache(config=self._config)

    def going_on(self, rows: int, column: int) -> None:
        """Nothing to do: the cache grows by itself."""

    def reorder(self, order: Sequence[int], column: int) -> None:
        self.cache.reorder_cache(torch.LongTensor(list(order)))
