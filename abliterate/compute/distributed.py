"""Share the work on a model among several processes, on one machine or many (torchrun).

The first process runs the program; the others wait for it to tell them what to compute with their own copy of the model. Each takes a
share of the prompts or of the candidates, and small results are sent back. Every machine needs only the model and, to query the edited
model, the run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from abliterate.compute.launch import started_as_several
from abliterate.compute.passes import Advance, Model, Pass, Seen, no_progress
from abliterate.errors import CheckError, InputError
from abliterate.model.folder import ModelFolder

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # the others wait while the first one edits or queries a server


@dataclass(frozen=True)
class Ranks:
    """This process, number ``rank`` of ``size``."""

    rank: int
    size: int

    def tell(self, message: Any) -> Any:
        """Broadcast the first process's message to all processes."""
        box = [message]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, found: Any) -> list[Any]:
        """What every process found, in rank order; only the first one receives it."""
        boxes: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(found, boxes, dst=0)
        return boxes or []


@cache
def joined() -> Ranks | None:
    """Join the other processes, once; None if there are none. Objects are sent over gloo, because they are on the CPU."""
    if not started_as_several():
        return None
    dist.init_process_group("gloo", timeout=PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size())


def dismiss() -> None:
    """End the other processes; only the first one does this, when it needs nothing more from them."""
    ranks = joined()
    if ranks is not None and ranks.rank == 0:
        ranks.tell(None)
        dist.destroy_process_group()


def serve(model_of: Callable[[Path], Model]) -> None:
    """Run in the other processes: compute what the first one asks for, until it dismisses them."""
    ranks = joined()
    if ranks is None:
        return
    while (order := ranks.tell(None)) is not None:
        path, function, arguments = order
        try:
            found: Any = function(model_of(path), *arguments[ranks.rank])
        except (InputError, CheckError, torch.OutOfMemoryError) as error:
            found = error
        ranks.gather(found)
    dist.destroy_process_group()


@dataclass(frozen=True)
class DistributedModel:
    """A model with a copy in every process; used by the first one."""

    own: Model
    ranks: Ranks

    @property
    def folder(self) -> ModelFolder:
        return self.own.folder

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.own.tokenizer

    @property
    def size(self) -> int:
        return self.ranks.size

    @property
    def segment(self) -> int | None:
        return self.own.segment * self.size if self.own.segment else None

    @property
    def longest(self) -> int | None:
        return self.own.longest

    def on_all(self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]], advance: Advance = no_progress) -> list[T]:
        """Run ``function(model, *arguments[rank])`` in every process; returns the results in rank order.

        Raises what it raised in any process. ``advance`` is called with this process's progress times the number of processes.
        """
        self.ranks.tell((self.folder.path, function, arguments))
        own: Any = None
        try:
            own = function(self.own, *arguments[0], lambda done: advance(done * self.size))
        except Exception as error:  # raised after the results of the others have arrived
            own = error
        found = self.ranks.gather(own)
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return found

    def watch(self, passes: Sequence[Pass], last: int, seen: Seen, advance: Advance = no_progress) -> None:
        for rank, heard in enumerate(self.on_all(_watched, [(share, last) for share in self._shares(passes)], advance)):
            for number, indices, index, stream in heard:
                seen(number, [rank + i * self.size for i in indices], index, stream)

    def logits(
        self, passes: Sequence[Pass], advance: Advance = no_progress
    ) -> Iterator[tuple[int, Sequence[int], Float[Tensor, "row kept vocab"]]]:
        found = self.on_all(_logits, [(share,) for share in self._shares(passes)], advance)
        for wanted in range(len(passes)):
            for rank, heard in enumerate(found):
                for number, indices, logits in heard:
                    if number == wanted:
                        yield number, [rank + i * self.size for i in indices], logits

    def replies(
        self, passes: Sequence[Pass], max_new_tokens: int, advance: Advance = no_progress
    ) -> Iterator[tuple[int, Sequence[int], list[list[int]]]]:
        for rank, heard in enumerate(self.on_all(_replies, [(share, max_new_tokens) for share in self._shares(passes)], advance)):
            for number, indices, replies in heard:
                yield number, [rank + i * self.size for i in indices], replies

    def _shares(self, passes: Sequence[Pass]) -> list[list[Pass]]:
        """Each process's sequences of every pass: every ``size``-th one."""
        return [[_share(asked, slice(rank, None, self.size)) for asked in passes] for rank in range(self.size)]


def _share(asked: Pass, part: slice) -> Pass:
    return replace(asked, sequences=asked.sequences[part], draws=None if asked.draws is None else asked.draws[part])


def _watched(
    model: Model, passes: Sequence[Pass], last: int, advance: Advance = no_progress
) -> list[tuple[int, Sequence[int], int, Tensor]]:
    heard: list[tuple[int, Sequence[int], int, Tensor]] = []
    model.watch(passes, last, lambda *seen: heard.append(seen), advance)
    return heard


def _logits(model: Model, passes: Sequence[Pass], advance: Advance = no_progress) -> list[tuple[int, Sequence[int], Tensor]]:
    return [(number, indices, logits.cpu()) for number, indices, logits in model.logits(passes, advance)]


def _replies(
    model: Model, passes: Sequence[Pass], max_new_tokens: int, advance: Advance = no_progress
) -> list[tuple[int, Sequence[int], list[list[int]]]]:
    return list(model.replies(passes, max_new_tokens, advance))
