"""Micro-batches of prompts, sorted by length and padded on the left, and what is read from their logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from abliterate.compute.passes import NO_INTERVENTION, Ids, Intervention, Pass


def pad_id(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int:
    """The padding id: the tokenizer's, or 0 if the embedding has no row for that. Padding is masked, so the choice makes no difference."""
    own = tokenizer.pad_token_id
    return int(own) if own is not None and 0 <= own < int(config.vocab_size) else 0


@dataclass(frozen=True)
class Batch:
    """Rows of ids padded on the left; ``indices`` says which sequence each row is.

    ``attention_mask`` is longer than the ids if the tokens before them are in a cache.
    """

    indices: tuple[int, ...]
    input_ids: Int[Tensor, "row token"]
    attention_mask: Int[Tensor, "row cached_and_token"]

    def inputs(self) -> dict[str, Tensor]:
        """The arguments of a model's forward pass."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "position_ids": self.position_ids}

    @property
    def position_ids(self) -> Int[Tensor, "row token"]:
        """Positions that count real tokens only, so that padding doesn't shift them."""
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -self.input_ids.shape[1] :]


def batches(sequences: Sequence[Sequence[int]], pad: int, size: int, device: torch.device) -> Iterator[Batch]:
    """The sequences in order of length, ``size`` at a time; the grouping depends on the lengths alone."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    for start in range(0, len(order), size):
        yield _padded(sequences, order[start : start + size], pad, device, 0)


def packed(sequences: Ids, pad: int, tokens: int, rows: int, device: torch.device, shared: int = 0, padded: bool = True) -> Iterator[Batch]:
    """The sequences in order of length in batches of at most ``tokens`` ids including padding and at most ``rows`` rows.

    Their first ``shared`` ids, which are all the same, are left out: they are in a cache, and the mask covers them. Unless
    ``padded``, only sequences of equal length share a batch.
    """
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    chosen: list[int] = []
    for index in order:
        width = len(sequences[index]) - shared
        other = not padded and chosen and len(sequences[chosen[-1]]) != len(sequences[index])
        if chosen and (len(chosen) >= rows or (len(chosen) + 1) * width > tokens or other):
            yield _padded(sequences, chosen, pad, device, shared)
            chosen = []
        chosen.append(index)
    if chosen:
        yield _padded(sequences, chosen, pad, device, shared)


def _padded(sequences: Ids, rows: Sequence[int], pad: int, device: torch.device, shared: int) -> Batch:
    width = max(len(sequences[i]) for i in rows) - shared
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), shared + width, dtype=torch.long)
    mask[:, :shared] = 1
    for row, index in enumerate(rows):
        own = torch.tensor(sequences[index][shared:], dtype=torch.long)
        ids[row, width - len(own) :] = own
        mask[row, shared + width - len(own) :] = 1
    return Batch(tuple(rows), ids.to(device), mask.to(device))


@dataclass(frozen=True)
class Continued:
    """Prompts with a given continuation each: a pass that keeps the logits from which every continuation token is predicted."""

    prompts: Ids
    continuations: Ids

    def passed(self, intervention: Intervention = NO_INTERVENTION) -> Pass:
        """The pass. Raises ValueError if the numbers of prompts and continuations differ."""
        joined = [[*p, *c] for p, c in zip(self.prompts, self.continuations, strict=True)]
        return Pass(joined, intervention, max(map(len, self.continuations), default=0) + 1)

    def along(self, indices: Sequence[int], logits: Float[Tensor, "row kept vocab"]) -> Iterator[tuple[int, Float[Tensor, "token vocab"]]]:
        """For each non-empty continuation, its prompt's index and the log-probabilities from which its tokens are chosen."""
        for row, index in enumerate(indices):
            if length := len(self.continuations[index]):
                yield index, logits[row, -length - 1 : -1].log_softmax(-1)

    def logprobs(self, indices: Sequence[int], logits: Float[Tensor, "row kept vocab"]) -> Float[Tensor, " row"]:
        """Log-likelihood (nats) of each whole continuation, on the CPU, from the logits of some rows of the pass."""
        kept = logits.shape[1] - 1
        logprobs = logits[:, :-1].log_softmax(-1)
        result = torch.zeros(len(indices))
        for row, index in enumerate(indices):
            ids = torch.tensor(list(self.continuations[index]), dtype=torch.long, device=logits.device)
            result[row] = logprobs[row, kept - len(ids) :].gather(-1, ids[:, None]).sum().cpu()
        return result
