"""Send sequences through a model in memory in batches, and compute their common prefix once for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

from abliterate.compute.at_once import AtOnce, each_batch
from abliterate.compute.forward import Batch
from abliterate.compute.load import InMemory
from abliterate.compute.passes import Ids
from abliterate.compute.prefix import Prefix, computed, only_attends, prefix_length
from abliterate.compute.whole.below import Below
from abliterate.compute.whole.reuse import Reuse

T = TypeVar("T")


@dataclass(frozen=True)
class Batching:
    """A model, the padding id, how much goes through it ``at_once``, and what its architecture lets it reuse."""

    model: InMemory
    pad: int
    at_once: AtOnce
    reuse: Reuse

    def each(self, sequences: Ids, compute: Callable[[Batch], T], shared: int = 0, rows: int = 1 << 30) -> Iterator[tuple[Batch, T]]:
        """Yield what ``compute`` returns for every batch of sequences, whose first ``shared`` tokens are left out."""
        return each_batch(sequences, self.pad, self.at_once, self.model.device, compute, shared, self.reuse.pads, rows)

    def prefix(self, sequences: Ids, reach: int, below: Below | None = None) -> Prefix | None:
        """The common prefix of the sequences, computed with the model as it is now; each computes its last ``reach`` tokens itself."""
        length = prefix_length(sequences, reach)
        if not length or not self.reuse.shares or not self.only_attends(sequences):
            return None
        with nullcontext() if below is None else below.entering(self.model, below.rows([(sequences[0], 0, length)], length)):
            return computed(self.model.module, sequences[0][:length])

    def only_attends(self, sequences: Ids, further: int = 0) -> bool:
        """Whether the cache holds only keys and values, and all of them, for the sequences with ``further`` more tokens."""
        return only_attends(self.model.folder.config, max(map(len, sequences), default=0) + further)
