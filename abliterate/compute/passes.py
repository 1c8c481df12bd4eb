"""What stages ask of a model, wherever its weights are: streams, logits and replies of prompts, each under an intervention of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from abliterate.model.edit import Edit
from abliterate.model.folder import ModelFolder

Ids = Sequence[Sequence[int]]
# Hears of rows done, in parts where a row takes long.
Advance = Callable[[int | float], None]
# Number of the pass, which of its sequences, activation index, their streams at the last positions (the last one last).
Seen = Callable[[int, Sequence[int], int, Float[Tensor, "row position d_model"]], None]

# A sequence, and its reply so far: whether it may end here. Where several processes work, it travels to all of them.
Settled = Callable[[Sequence[int], Sequence[int]], bool]


def no_progress(done: int | float) -> None:
    """Progress that nobody is told of."""


@dataclass(frozen=True)
class Intervention:
    """What is different while a model runs: its writers lose an edit's directions, and a vector is added after a block.

    ``shift`` is [d_model], added to the stream after block ``shift_layer`` at every position.
    """

    edit: Edit | None = None
    shift: Float[Tensor, " d_model"] | None = None
    shift_layer: int = 0

    @property
    def alters(self) -> bool:
        """Whether anything is different at all."""
        return self.edit is not None or self.shift is not None


NO_INTERVENTION = Intervention()


@dataclass(frozen=True)
class Pass:
    """Sequences of token ids that go through the model under one intervention; ``kept`` last positions get logits.

    ``settled`` replies may end before their end token.
    """

    sequences: Ids
    intervention: Intervention = NO_INTERVENTION
    kept: int = 1
    settled: Settled | None = None


# Number of the pass, which of its sequences, which token of each reply, and the logits that it is chosen from.
OnLogits = Callable[[int, Sequence[int], Sequence[int], Float[Tensor, "row vocab"]], None]


@dataclass(frozen=True)
class ReplyListeners:
    """What is told while replies are written: ``seen`` of the prompts' streams at the ``last`` positions, as ``Model.watch`` tells it, and
    ``heard`` of the logits."""

    last: int
    seen: Seen
    heard: OnLogits


@runtime_checkable
class Model(Protocol):
    """A model that can be asked. Several passes are given at once, so that weights that are read from disk are read once for all.

    ``segment``: how many sequences are best given to ``replies`` at once; None: as many as there are. ``longest``: the most tokens of a
    reply that it writes; None: as many as it is asked for.
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
        """Tell ``seen`` of the streams (float32, on the CPU) at the last ``last`` positions, at every activation index: 0 is what
        enters the first block, l + 1 the stream after block l and before the final norm."""

    def logits(
        self, passes: Sequence[Pass], advance: Advance = no_progress
    ) -> Iterator[tuple[int, Sequence[int], Float[Tensor, "row kept vocab"]]]:
        """Pass number, which of its sequences, and their logits (float32) at the last ``kept`` positions; pass after pass."""
        ...

    def replies(
        self, passes: Sequence[Pass], max_new_tokens: int, advance: Advance = no_progress
    ) -> Iterator[tuple[int, Sequence[int], list[list[int]]]]:
        """Pass number, which of its sequences, and their greedy continuations, up to and without the end token."""
        ...
