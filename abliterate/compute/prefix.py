"""The prefix that the sequences of a call share (a system prompt, the template's head), computed once for all rows.

Its keys and values are computed as one row; each row attends to them as if it had computed them itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from abliterate.compute.passes import Ids

try:
    from transformers.cache_utils import DummyLayer as DummyLayer
except ImportError:  # before transformers 5.23 there is no cache layer for blocks that keep nothing

    class DummyLayer:  # type: ignore[no-redef]
        """A stand-in of which no cache layer is an instance."""


MIN_SHARED = 4  # tokens; a shorter prefix is not worth its own pass


def shared_prefix(sequences: Ids) -> int:
    """How many first ids all sequences have in common."""
    first, last = min(map(list, sequences), default=[]), max(map(list, sequences), default=[])
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def prefix_length(sequences: Ids, reach: int) -> int:
    """How many first ids of the sequences are worth computing once, if each computes its last ``reach`` ids itself."""
    if len(sequences) < 2:
        return 0
    length = min(shared_prefix(sequences), min(map(len, sequences)) - reach)
    return length if length >= MIN_SHARED else 0


def kinds_of(config: PretrainedConfig) -> list[type]:
    """The type of each block's cache layer in an architecture."""
    return [type(layer) for layer in DynamicCache(config=config).layers]


def only_attends(config: PretrainedConfig, longest: int) -> bool:
    """Whether every block that caches anything caches all keys and values: there is no state of another kind, and no window is
    shorter than ``longest`` tokens."""
    layers = DynamicCache(config=config).layers
    plain = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
    return bool(layers) and all(type(layer) in plain and getattr(layer, "sliding_window", longest) >= longest for layer in layers)


class Following(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One block's keys and values of a prefix: [1, head, token, dim], put before those of every row, or [row, head, token, dim], each put
    before those of one row. Nothing else is kept."""

    keys: Any
    values: Any

    def __init__(self, keys: Tensor, values: Tensor, is_sliding: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self.is_sliding = keys, values, is_sliding
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: it is complete from the beginning."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return before(self.keys, key_states), before(self.values, value_states)

    def get_seq_length(self) -> int:
        return int(self.keys.shape[-2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


def before(shared: Tensor, own: Tensor) -> Tensor:
    """Keys or values of a prefix, [1 or row, head, token, dim], followed by each row's own."""
    return torch.cat([shared.expand(own.shape[0], -1, -1, -1), own], dim=-2)


@dataclass(frozen=True)
class Prefix:
    """A prefix of ``length`` tokens that has been through a model, with one cache layer per block."""

    length: int
    layers: Sequence[Following | DummyLayer]


def after(prefix: Prefix | None) -> dict[str, Any]:
    """The arguments of a forward pass whose rows follow a prefix."""
    return {"use_cache": False} if prefix is None else {"past_key_values": Cache(layers=list(prefix.layers)), "use_cache": True}


def computed(module: PreTrainedModel, ids: Sequence[int]) -> Prefix:
    """Send a prefix through a model as it is now, hooks included. Valid only if ``only_attends`` holds for the whole sequences."""
    cache = DynamicCache(config=module.config.get_text_config(decoder=True))
    row = torch.tensor([list(ids)], device=module.device)
    positions = torch.arange(len(ids), device=module.device)[None]
    module.base_model(input_ids=row, attention_mask=torch.ones_like(row), position_ids=positions, past_key_values=cache, use_cache=True)
    asked = next(layer for layer in cache.layers if getattr(layer, "keys", None) is not None)
    return Prefix(len(ids), [_following(layer, asked) for layer in cache.layers])


def _following(layer: Any, asked: Any) -> Following | DummyLayer:
    """A skipped block gets another block's keys and values: it will be skipped again, but is asked for the length of the past."""
    if isinstance(layer, DummyLayer):
        return layer
    full = layer if getattr(layer, "keys", None) is not None else asked
    return Following(full.keys, full.values, layer.is_sliding)
