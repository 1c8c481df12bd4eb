"""One pass of the unedited model over its prompts that collects residual streams, short replies, and the predictions along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from abliterate.compute.passes import Advance, Model, Pass, ReplyListeners, Seen, no_progress
from abliterate.compute.whole.model import WholeModel
from abliterate.measures.predictions import KEPT, Predicted
from abliterate.model.folder import ModelFolder


@dataclass(frozen=True)
class ProbedReply:
    """The ``reply`` to a prompt, without the end token, and for each of its first positions the likeliest tokens with their
    log-probabilities. An empty reply has one position."""

    reply: list[int]
    tokens: Int[Tensor, "position kept"]
    logprobs: Float[Tensor, "position kept"]

    @property
    def positions(self) -> int:
        """The number of positions that have predictions."""
        return min(max(1, len(self.reply)), len(self.tokens))


@dataclass
class Probe:
    """A model that can be watched while it writes replies of at most ``longest`` tokens.

    Keeps the predictions of the first ``along`` tokens. ``said``: the replies, by the token ids of their prompt.
    """

    model: WholeModel
    longest: int
    along: int
    said: dict[tuple[int, ...], ProbedReply] = field(default_factory=dict)

    @property
    def folder(self) -> ModelFolder:
        return self.model.folder

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.model.tokenizer

    def watch(self, passes: Sequence[Pass], last: int, seen: Seen, advance: Advance = no_progress) -> None:
        """Like ``Model.watch``, and stores the replies in ``said``. Equal passes run once, and ``seen`` is called for each of them."""
        alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for number, asked in enumerate(passes):
            alike.setdefault(tuple(map(tuple, asked.sequences)), []).append(number)
        chosen = [passes[numbers[0]] for numbers in alike.values()]
        readers = list(alike.values())

        def seen_by_all(which: int, indices: Sequence[int], index: int, stream: Float[Tensor, "row position d_model"]) -> None:
            for number in readers[which]:
                seen(number, indices, index, stream)

        kept = min(KEPT, int(self.folder.config.vocab_size))
        sizes = [(len(asked.sequences), self.along, kept) for asked in chosen]
        tokens, logprobs = [torch.zeros(size, dtype=torch.int32) for size in sizes], [torch.zeros(size) for size in sizes]

        def heard(which: int, indices: Sequence[int], steps: Sequence[int], logits: Float[Tensor, "row vocab"]) -> None:
            rows = [row for row, step in enumerate(steps) if step < self.along]
            if not rows:
                return
            values, likeliest = logits[rows].float().log_softmax(-1).topk(kept)
            places = [indices[row] for row in rows], [steps[row] for row in rows]
            tokens[which][places], logprobs[which][places] = likeliest.int().cpu(), values.cpu()

        for which, indices, replies in self.model.replies(chosen, self.longest, told=ReplyListeners(last, seen_by_all, heard)):
            for index, reply in zip(indices, replies, strict=True):
                ids = tuple(chosen[which].sequences[index])
                self.said[ids] = ProbedReply(list(reply), tokens[which][index], logprobs[which][index])
                advance(len(readers[which]))


def probe_of(model: Model, prompts: Sequence[Sequence[int]], longest: int, along: int) -> Probe | None:
    """A probe of the model; None if the model can't report streams while it writes replies, so that two passes are needed."""
    return Probe(model, longest, along) if isinstance(model, WholeModel) and model.tells(prompts, longest) else None


def predicted(said: Sequence[ProbedReply]) -> Predicted:
    """The model's predictions along the given replies."""
    starts = torch.tensor([0, *(each.positions for each in said)]).cumsum(0)
    if not said:
        return Predicted(torch.zeros(0, 0, dtype=torch.int32), torch.zeros(0, 0), starts, torch.zeros(0))
    tokens = torch.cat([each.tokens[: each.positions] for each in said])
    logprobs = torch.cat([each.logprobs[: each.positions] for each in said])
    chosen = logprobs.amax(-1)  # replies are greedy, so each token is the likeliest one
    nats = torch.stack([-chosen[a:b].double().mean() for a, b in zip(starts.tolist(), starts[1:].tolist(), strict=False)]).float()
    return Predicted(tokens, logprobs, starts, nats)
