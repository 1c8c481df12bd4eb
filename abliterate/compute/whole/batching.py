"""How sequences go through a model in memory: which of them together, and what they begin with once for all."""

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
    """A model, the id that fills rows up, how much goes through it ``at_once``, and what its architecture lets it use again."""

    model: InMemory
    pad: int
    at_once: AtOnce
    reuse: Reuse

    def each(self, sequences: Ids, compute: Callable[[Batch], T], shared: int = 0, rows: int = 1 << 30) -> Iterator[tuple[Batch, T]]:
        """What ``compute`` makes of every batch of sequences, whose first ``shared`` tokens are left out."""
        return each_batch(sequences, self.pad, self.at_once, self.model.device, compute, shared, self.reuse.pads, rows)

    def prefix(self, sequences: Ids, reach: int, below: Below | None = None) -> Prefix | None:
        """What the sequences begin with alike, computed as the model is now; each keeps ``reach`` last tokens for itself."""
        length = prefix_length(sequences, reach)
        if not length or not self.reuse.shares or not self.only_attends(sequences):
            return None
        with nullcontext() if below is None else below.entering(self.model, below.rows([(sequences[0], 0, length)], length)):
            return computed(self.model.module, sequences[0][:length])

    def only_attends(self, sequences: Ids, further: int = 0) -> bool:
        """Whether keys and values are all that is kept of the sequences with so many ``further`` tokens."""
        return only_attends(self.model.folder.config, max(map(len, sequences), default=0) + further)
