"""Forward passes over many prompts: length-sorted, left-padded micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from abliterate.model.load import LocalModel


@dataclass(frozen=True)
class Batch:
    """Rows of ids padded on the left; ``indices`` says which sequence each row is."""

    indices: tuple[int, ...]
    input_ids: Int[Tensor, "row token"]
    attention_mask: Int[Tensor, "row token"]

    @property
    def position_ids(self) -> Int[Tensor, "row token"]:
        """Positions that count real tokens only, so that padding doesn't shift them."""
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)


def batches(sequences: Sequence[Sequence[int]], pad: int, size: int, device: torch.device) -> Iterator[Batch]:
    """The sequences in order of length, ``size`` at a time; the grouping depends on the lengths alone."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        width = len(sequences[rows[-1]])
        ids = torch.full((len(rows), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(rows):
            ids[row, width - len(sequences[index]) :] = torch.tensor(sequences[index], dtype=torch.long)
            mask[row, width - len(sequences[index]) :] = 1
        yield Batch(tuple(rows), ids.to(device), mask.to(device))


def run(model: LocalModel, batch: Batch, logits_to_keep: int = 1) -> Float[Tensor, "row kept vocab"]:
    """Logits at the last ``logits_to_keep`` positions, float32."""
    out = model.module(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=logits_to_keep,
    )
    logits: Tensor = out.logits
    return logits.float()


@torch.inference_mode()
def first_token_logprobs(
    model: LocalModel, prompts: Sequence[Sequence[int]], batch_size: int, advance: Callable[[int], None] = lambda done: None
) -> Float[Tensor, "prompt vocab"]:
    """Log-probabilities of the first generated token after each prompt, float32 on the CPU, in the prompts' order."""
    result: Tensor | None = None
    for batch in batches(prompts, model.tokenizer.pad_token_id, batch_size, model.device):
        logprobs = run(model, batch)[:, -1].log_softmax(-1).cpu()
        if result is None:
            result = torch.empty(len(prompts), logprobs.shape[-1])
        result[list(batch.indices)] = logprobs
        advance(len(batch.indices))
    return result if result is not None else torch.empty(0, 0)


@torch.inference_mode()
def continuation_logprobs(
    model: LocalModel, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], batch_size: int
) -> Float[Tensor, " prompt"]:
    """Mean log-probability per token (nats) of each given continuation after its prompt, in the prompts' order."""
    joined = [[*p, *c] for p, c in zip(prompts, continuations, strict=True)]
    result = torch.empty(len(joined))
    for batch in batches(joined, model.tokenizer.pad_token_id, batch_size, model.device):
        longest = max(len(continuations[i]) for i in batch.indices)
        logprobs = run(model, batch, longest + 1)[:, :-1].log_softmax(-1)
        chosen = logprobs.gather(-1, batch.input_ids[:, -longest:, None])[..., 0]
        for row, index in enumerate(batch.indices):
            result[index] = chosen[row, longest - len(continuations[index]) :].mean()
    return result
