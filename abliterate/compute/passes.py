"""What stages ask of a model, wherever its weights are: streams, logits and replies of prompts, each under its own intervention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from abliterate.compute.draws import Draw
from abliterate.model.edit import Edit
from abliterate.model.folder import ModelFolder

Ids = Sequence[Sequence[int]]
# Called with the number of rows done, in fractions if a row takes long.
Advance = Callable[[int | float], None]
# Pass number, indices of its sequences, activation index, their streams at the last positions (the last one last).
Seen = Callable[[int, Sequence[int], int, Float[Tensor, "row position d_model"]], None]

# Given a sequence and its reply so far, whether the reply may end here. With several processes, it is sent to all of them.
Settled = Callable[[Sequence[int], Sequence[int]], bool]


def no_progress(done: int | float) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class Intervention:
    """What is changed while a model runs: an edit's directions are removed from its writers, and a vector is added after a block.

    ``shift`` is [d_model], added to the stream after block ``shift_layer`` at every position.
    """

    edit: Edit | None = None
    shift: Float[Tensor, " d_model"] | None = None
    shift_layer: int = 0

    @property
    def alters(self) -> bool:
        """Whether it changes anything."""
        return self.edit is not None or self.shift is not None


NO_INTERVENTION = Intervention()


@dataclass(frozen=True)
class Pass:
    """Sequences of token ids that go through the model under one intervention; the last ``kept`` positions get logits.

    Replies for which ``settled`` is true may end before their end token. ``draws``: one for each sequence, if replies are sampled and not
    greedy.
    """

    sequences: Ids
    intervention: Intervention = NO_INTERVENTION
    kept: int = 1
    settled: Settled | None = None
    draws: Sequence[Draw] | None = None


# Pass number, indices of its sequences, which token of each reply, and the logits that it is chosen from.
OnLogits = Callable[[int, Sequence[int], Sequence[int], Float[Tensor, "row vocab"]], None]


@dataclass(frozen=True)
class ReplyListeners:
    """Callbacks while replies are written: ``seen`` gets the prompts' streams at the ``last`` positions, as in ``Model.watch``; ``heard``
    gets the logits."""

    last: int
    seen: Seen
    heard: OnLogits


@runtime_checkable
class Model(Protocol):
    """A model that can be queried. Several passes are given at once, so that weights on disk are read once for all of them.

    ``segment``: how many sequences to give to ``replies`` at once; None: all of them. ``longest``: the most tokens of a reply that it
    writes; None: as many as requested.
    """

    @property
    def folder(self) -> ModelFolder: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def segment(self) -> int | None: ...

    @property
    def longest(self) -> int | None: ...

    def watch(self, passes: Sequence[Pass], last: int, seen: Seen, advance: Advance = no_progress) -> None:
        """Call ``seen`` with the streams (float32, on the CPU) at the last ``last`` positions, at every activation index: 0 is what
        enters the first block, l + 1 the stream after block l and before the final norm."""

    def logits(
        self, passes: Sequence[Pass], advance: Advance = no_progress
    ) -> Iterator[tuple[int, Sequence[int], Float[Tensor, "row kept vocab"]]]:
        """Yield pass number, indices of its sequences, and their logits (float32) at the last ``kept`` positions, pass by pass."""
        ...

    def replies(
        self, passes: Sequence[Pass], max_new_tokens: int, advance: Advance = no_progress
    ) -> Iterator[tuple[int, Sequence[int], list[list[int]]]]:
        """Yield pass number, indices of its sequences, and their continuations without the end token: greedy, or sampled if
        a pass has draws."""
        ...
