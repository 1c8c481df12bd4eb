"""Sequences that continue the same beginning in several ways (one prompt, several replies): the beginning is computed once.

Its keys and values, computed as one row, are given to every sequence that continues it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from abliterate.compute.forward import Batch
from abliterate.compute.passes import Ids
from abliterate.compute.prefix import DummyLayer, Following, Prefix

LEAST_SAVED = 0.25  # share of the tokens: if less is saved, the second forward pass costs more than that


@dataclass(frozen=True)
class Branches:
    """``stems`` are the distinct beginnings of sequences; sequence ``i`` continues ``stems[of[i]]`` with ``tails[i]``. All tails have the
    same length."""

    stems: Ids
    of: Sequence[int]
    tails: Ids

    def from_stems(self, chosen: Sequence[int]) -> list[int]:
        """The indices of the sequences that continue some stems."""
        wanted = frozenset(chosen)
        return [i for i, stem in enumerate(self.of) if stem in wanted]


def branches(sequences: Ids, kept: int, shared: int = 0) -> Branches | None:
    """Split off the last ``kept`` - 1 tokens of each sequence as its tail; None unless that saves a good part of the tokens. The first
    ``shared`` tokens are computed once in any case.

    The logits of the last ``kept`` positions are those of a stem's last position and of all positions of its tail.
    """
    length = kept - 1
    if not length or not sequences or min(map(len, sequences)) - length <= shared:
        return None
    numbers: dict[tuple[int, ...], int] = {}
    of = [numbers.setdefault(tuple(ids[:-length]), len(numbers)) for ids in sequences]
    tails = [list(ids[-length:]) for ids in sequences]
    whole = sum(len(ids) - shared for ids in sequences)
    apart = sum(len(stem) - shared for stem in numbers) + length * len(sequences)
    return Branches([list(stem) for stem in numbers], of, tails) if apart <= (1 - LEAST_SAVED) * whole else None


class Stem(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One block's keys and values of the rows of a forward pass, [row, head, token, dim], including those of a prefix."""

    keys: Any
    values: Any

    def __init__(self, prefix: Any, is_sliding: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.prefix, self.is_sliding, self.is_initialized = prefix, is_sliding, True
        self.keys = self.values = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: it stores the tensors that it gets."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        own = key_states, value_states
        self.keys, self.values = own if self.prefix is None else self.prefix.update(*own)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return 0 if self.prefix is None else self.prefix.get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


@dataclass(frozen=True)
class Grown:
    """A batch of stems that has been through the model: its cache, and the logits of their last positions, [stem, 1, vocab]."""

    layers: Sequence[Stem | DummyLayer]
    mask: Int[Tensor, "stem token"]
    logits: Float[Tensor, "stem 1 vocab"]

    def rows(self, chosen: Sequence[int]) -> tuple[Cache, Int[Tensor, "row token"]]:
        """The cache and the mask of the stems that some rows continue."""
        at = torch.tensor(list(chosen), device=self.mask.device)
        asked = next(layer for layer in self.layers if isinstance(layer, Stem) and layer.keys is not None)
        layers: list[Any] = [layer if isinstance(layer, DummyLayer) else _rows(layer, at, asked) for layer in self.layers]
        return Cache(layers=layers), self.mask[at]


def _rows(layer: Stem, at: Tensor, asked: Stem) -> Following:
    """Some rows of a stem, as a prefix of the tails. A skipped block gets another block's keys and values: it will be skipped again, but
    is asked for the length of the past."""
    full = layer if layer.keys is not None else asked
    return Following(full.keys[at.to(full.keys.device)], full.values[at.to(full.values.device)], layer.is_sliding)


def grown(module: PreTrainedModel, batch: Batch, prefix: Prefix | None) -> Grown:
    """Send stems through a model as it is now, hooks included, after a prefix. Valid only if ``only_attends`` holds for whole sequences."""
    kinds: Sequence[Any] = DynamicCache(config=module.config.get_text_config(decoder=True)).layers
    before_them: Sequence[Any] = prefix.layers if prefix is not None else [None] * len(kinds)
    layers = [kind if isinstance(kind, DummyLayer) else Stem(own, kind.is_sliding) for kind, own in zip(kinds, before_them, strict=True)]
    out = module(**batch.inputs(), past_key_values=Cache(layers=list(layers)), use_cache=True, logits_to_keep=1)
    return Grown(layers, batch.attention_mask, out.logits.float())


def grown_on(module: PreTrainedModel, stems: Grown, chosen: Sequence[int], tails: Batch) -> Float[Tensor, "row kept vocab"]:
    """Logits of the tails that continue the ``chosen`` stems, row by row, each preceded by the last logits of its stem."""
    cache, mask = stems.rows(chosen)
    whole = Batch(tails.indices, tails.input_ids, torch.cat([mask, tails.attention_mask], dim=1))
    logits = module(**whole.inputs(), past_key_values=cache, use_cache=True, logits_to_keep=tails.input_ids.shape[1]).logits.float()
    first: Tensor = stems.logits[list(chosen)]
    return torch.cat([first.to(logits.device), logits], dim=1)
