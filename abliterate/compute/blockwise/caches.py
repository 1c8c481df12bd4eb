"""KV caches for blockwise passes: a prefix that many prompts share is computed once, and each prompt's own cache serves its next token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class AfterPrefix(DynamicLayer):  # type: ignore[no-untyped-call]
    """One block's keys and values of prompts with a common prefix: those of ``shared`` (one row, filled by the time they are needed),
    then each row's own."""

    def __init__(self, shared: DynamicLayer, length: int, sliding: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shared, self._length = shared, length
        self.is_sliding = sliding

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            rows = key_states.shape[0]
            assert self._shared.keys is not None and self._shared.values is not None, "the prefix goes first"
            before = (self._shared.keys.expand(rows, -1, -1, -1), self._shared.values.expand(rows, -1, -1, -1))
        else:
            assert self.keys is not None and self.values is not None
            before = (self.keys, self.values)
        self.keys, self.values = torch.cat([before[0], key_states], dim=-2), torch.cat([before[1], value_states], dim=-2)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self._length if self.keys is None or not self.is_initialized else int(self.keys.shape[-2])


def empty_cache(config: PretrainedConfig) -> DynamicCache:
    """The cache that this architecture's blocks expect."""
    return DynamicCache(config=config)


def after(prefix: Cache, length: int) -> Cache:
    """A cache that begins with what ``prefix`` holds, or will hold, of ``length`` tokens."""
    return Cache(layers=[AfterPrefix(layer, length, layer.is_sliding) for layer in prefix.layers if isinstance(layer, DynamicLayer)])


def can_share(config: PretrainedConfig, longest: int) -> bool:
    """Whether every block only attends to keys and values, and to all of them: none has another kind of state, and no window is shorter
    than ``longest`` tokens."""
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    layers = empty_cache(config).layers
    return bool(layers) and all(type(layer) in plain and getattr(layer, "sliding_window", longest) >= longest for layer in layers)


def let_go(cache: Cache | None, layer: int) -> None:
    """Drop one block's keys and values."""
    if cache is not None:
        cache.layers[layer].reset()
