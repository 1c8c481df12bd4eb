"""A model's predictions along texts. Several measurements listen to the logits of one pass over the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from abliterate.compute.forward import Continued
from abliterate.compute.passes import Advance, Ids, Model, Pass, no_progress
from abliterate.model.chat.thinking import empty_thought, opens_thought

KEPT = 1024  # how many of the base's likeliest tokens are kept at each position
_LEAST = 1e-12  # the smallest probability of the lumped tokens, in case rounding leaves zero


@dataclass(frozen=True)
class Texts:
    """The texts that drift is measured on, as token ids: ``prompts``, the base's ``replies`` to them, and ``prose``.

    Nothing is measured along an empty reply or text.
    """

    prompts: Ids
    replies: Ids
    prose: Ids

    @property
    def work(self) -> int:
        """How many sequences run through a model."""
        return 2 * len(self.prompts) + len(self.prose)


def kl_divergence(base: Float[Tensor, "row vocab"], edited: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    """KL(base‖edited) in nats for each row of log-probabilities, summed in float64."""
    p = base.double()
    terms = torch.where(p > -torch.inf, p.exp() * (p - edited.double()), torch.zeros_like(p))
    return terms.sum(-1).clamp(min=0).float()


@dataclass(frozen=True)
class Predicted:
    """The base's predictions along sequences: at each position, the ``KEPT`` likeliest tokens and their log-probabilities.

    The positions of sequence i start at ``starts[i]``. ``nats``: the mean cross-entropy of each sequence's own tokens; NaN if it is empty.
    """

    tokens: Int[Tensor, "position kept"]
    logprobs: Float[Tensor, "position kept"]
    starts: Int[Tensor, " sequence_and_end"]
    nats: Float[Tensor, " sequence"]

    def of(self, chosen: Sequence[int]) -> Predicted:
        """The predictions along the chosen sequences."""
        places = [self.place(i) for i in chosen]
        starts = torch.tensor([0, *(place.stop - place.start for place in places)]).cumsum(0)
        rows = torch.tensor([row for place in places for row in range(place.start, place.stop)], dtype=torch.long)
        return Predicted(self.tokens[rows], self.logprobs[rows], starts, self.nats[torch.tensor(list(chosen), dtype=torch.long)])

    def place(self, index: int) -> slice:
        """The positions of a sequence."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))


@runtime_checkable
class LogitsListener(Protocol):
    """A listener for the logits of a pass."""

    @property
    def passed(self) -> Pass: ...

    def hear(self, indices: Sequence[int], logits: Float[Tensor, "row kept vocab"]) -> None: ...


def ask(model: Model, hearers: Sequence[LogitsListener], advance: Advance = no_progress) -> None:
    """Run all passes together, so that weights on disk are read once."""
    for number, indices, logits in model.logits([hearer.passed for hearer in hearers], advance):
        hearers[number].hear(indices, logits)


class Firsts:
    """``logprobs`` [prompt, vocab] of the first token after each prompt."""

    def __init__(self, prompts: Ids) -> None:
        self.passed = Pass(prompts)
        self.logprobs: Float[Tensor, "prompt vocab"] = torch.empty(0, 0)

    def hear(self, indices: Sequence[int], logits: Float[Tensor, "row kept vocab"]) -> None:
        if not len(self.logprobs):
            self.logprobs = torch.empty(len(self.passed.sequences), logits.shape[-1])
        self.logprobs[list(indices)] = logits[:, -1].log_softmax(-1).cpu()


class Predictions:
    """A model's predictions along the replies."""

    def __init__(self, model: Model, texts: Texts) -> None:
        self._asked = Continued(texts.prompts, texts.replies)
        self.passed = self._asked.passed()
        starts = torch.tensor([0, *map(len, texts.replies)]).cumsum(0)
        total, kept = int(starts[-1]), min(KEPT, int(model.folder.config.vocab_size))
        nats = torch.full((len(texts.replies),), torch.nan)
        self.found = Predicted(torch.zeros(total, kept, dtype=torch.int32), torch.zeros(total, kept), starts, nats)

    def hear(self, indices: Sequence[int], logits: Float[Tensor, "row kept vocab"]) -> None:
        for index, rows in self._asked.along(indices, logits):
            values, chosen = rows.topk(self.found.tokens.shape[1])
            place = self.found.place(index)
            self.found.tokens[place], self.found.logprobs[place] = chosen.int().cpu(), values.cpu()
            self.found.nats[index] = _nats(rows, self._asked.continuations[index])


class Divergences:
    """For each reply, ``kl``: the mean KL(base‖model) per token, ``first``: the KL of its first token, ``nats``: the model's own
    cross-entropy of the reply; NaN if the reply is empty."""

    def __init__(self, base: Predicted, texts: Texts) -> None:
        self._base, self._asked = base, Continued(texts.prompts, texts.replies)
        self.passed = self._asked.passed()
        self.kl, self.first, self.nats = torch.full((3, len(texts.replies)), torch.nan)

    def hear(self, indices: Sequence[int], logits: Float[Tensor, "row kept vocab"]) -> None:
        for index, rows in self._asked.along(indices, logits):
            place = self._base.place(index)
            others = rows.cpu().gather(-1, self._base.tokens[place].long())
            kl = kl_divergence(with_rest(self._base.logprobs[place].double()), with_rest(others.double()))
            self.kl[index], self.first[index] = kl.mean(), kl[0]
            self.nats[index] = _nats(rows, self._asked.continuations[index])


class Nats:
    """``nats``: the cross-entropy per token of each text after its first token; NaN for a text of fewer than two tokens."""

    def __init__(self, texts: Ids) -> None:
        self._long = [i for i, ids in enumerate(texts) if len(ids) > 1]
        self._asked = Continued([list(texts[i][:1]) for i in self._long], [list(texts[i][1:]) for i in self._long])
        self.passed = self._asked.passed()
        self.nats = torch.full((len(texts),), torch.nan)

    def hear(self, indices: Sequence[int], logits: Float[Tensor, "row kept vocab"]) -> None:
        for place, rows in self._asked.along(indices, logits):
            self.nats[self._long[place]] = _nats(rows, self._asked.continuations[place])


class ThoughtClosing:
    """``log_odds`` [prompt] that the model closes its thought at once instead of thinking.

    The thought-suppression score of Cyberey & Evans 2025 (arXiv 2504.17130), of the whole closing mark.
    """

    def __init__(self, prompts: Ids, mark: Sequence[int]) -> None:
        self._asked = Continued(prompts, [mark] * len(prompts))
        self.passed = self._asked.passed()
        self.log_odds = torch.zeros(len(prompts))

    @classmethod
    def of(cls, model: Model, prompts: Ids) -> ThoughtClosing | None:
        """None if the chat template opens no thought."""
        return cls(prompts, empty_thought(model.tokenizer)) if opens_thought(model.tokenizer) else None

    def hear(self, indices: Sequence[int], logits: Float[Tensor, "row kept vocab"]) -> None:
        logprobs = self._asked.logprobs(indices, logits).double()
        self.log_odds[list(indices)] = (logprobs - torch.log1p(-logprobs.exp().clamp(max=1 - _LEAST))).float()


def with_rest(logprobs: Float[Tensor, "position kept"]) -> Float[Tensor, "position kept_and_rest"]:
    """Append the log-probability of all other tokens; the dtype stays the same."""
    rest = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp(min=_LEAST).log()
    return torch.cat([logprobs, rest], dim=-1)


def _nats(rows: Float[Tensor, "position vocab"], ids: Sequence[int]) -> float:
    chosen = torch.tensor(list(ids), dtype=torch.long, device=rows.device)
    return -float(rows.gather(-1, chosen[:, None]).double().mean())
