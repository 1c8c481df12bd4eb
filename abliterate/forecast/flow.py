"""What goes through the model in one step of a run: tokens with their padding, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from abliterate.compute.at_once import AtOnce, at_once
from abliterate.compute.blockwise.model import LOGIT_NUMBERS, MAX_NEW_TOKENS
from abliterate.compute.forward import packed
from abliterate.compute.memory import Holding
from abliterate.compute.prefix import only_attends, prefix_length
from abliterate.compute.whole.branches import branches
from abliterate.config import RunConfig
from abliterate.forecast.arithmetic import Arithmetic
from abliterate.forecast.steps import Asked, Step
from abliterate.model.folder import ModelFolder

_CPU = torch.device("cpu")
_MANY = 1 << 30


@dataclass(frozen=True)
class Flow:
    """The totals over all interventions of a step. ``rows``: sequences. ``tokens``: prompt tokens. ``replied``: tokens of each reply after
    its first.

    ``largest``: tokens in the largest micro-batch. ``logits``: positions that get logits; ``heads``: micro-batches that do;
    ``logits_at_once``: most logits held at once, as numbers. ``held``: tokens in the KV cache at once. ``live``: replies generated at
    once. ``context``: tokens of the longest sequence with its reply. ``passed_over``: share of the blocks that prompt tokens skip.
    """

    rows: int
    tokens: int
    replied: int
    largest: int
    logits: int
    logits_at_once: int
    heads: int
    held: int
    live: int
    context: int
    passed_over: float = 0.0

    def flops(self, costs: Arithmetic) -> tuple[float, float]:
        """Floating-point operations of the prompts, and of the reply tokens."""
        prompts = costs.flops(1, self.tokens, self.context, self.logits) - self.passed_over * costs.flops(1, self.tokens, self.context, 0)
        return prompts, costs.flops(self.rows, self.replied, self.context, self.replied)


@dataclass(frozen=True)
class ComputeLimits:
    """What a model computes at once: at most ``tokens`` and ``rows`` in a micro-batch, and ``live`` replies of ``longest`` tokens.
    ``together``: a whole step goes through at once, as when the weights are read block by block."""

    tokens: int
    rows: int
    live: int
    longest: int
    together: bool


def limits_of(config: RunConfig, folder: ModelFolder, held: Holding, device: torch.device) -> ComputeLimits:
    """The limits of the model, which depend on how it is held."""
    if not held.whole:
        return ComputeLimits(held.tokens, _MANY, _MANY, MAX_NEW_TOKENS, True)
    amount: AtOnce = at_once(config.batch_size, folder.config, device, held.dtype.itemsize, None)
    return ComputeLimits(amount.tokens, amount.prompts, amount.rows, _MANY, False)


def flow_of(step: Step, folder: ModelFolder, manner: ComputeLimits) -> Flow:
    """The flow of a step through a model with these limits."""
    new = min(step.new_tokens, manner.longest)
    reach = max((asked.kept for asked in step.asked), default=1) or 1
    vocabulary = int(folder.config.vocab_size)
    longest = max((len(ids) for asked in step.asked for ids in asked.sequences), default=1)
    shared = _shared(step, folder, reach, longest + new)
    tokens = shared * max((asked.times for asked in step.asked), default=0)
    largest, most, heads, logits = shared, 0, 0, 0
    for asked in step.asked:
        kept = asked.kept or (1 if new else 0)
        for rows, width, with_logits in _micro_batches(asked, manner, kept, vocabulary, shared):
            tokens += rows * width * asked.times
            largest = max(largest, rows * width)
            logits += rows * with_logits * asked.times
            heads += asked.times if with_logits else 0
            most = max(most, rows * with_logits * vocabulary)
    rows = step.prompts
    live = min(rows, manner.live) if new else 0
    return Flow(
        rows=rows,
        tokens=tokens,
        replied=max(0, new - 1),
        largest=max(largest, min(live, manner.tokens)),
        logits=logits,
        logits_at_once=most,
        heads=heads,
        held=_held(step, live, new) if new else 0,
        live=live,
        context=longest + new,
        passed_over=0.0 if manner.together else step.passed_over,
    )


def _held(step: Step, live: int, new: int) -> int:
    """Tokens in the KV cache for the longest sequences whose replies are generated at once."""
    lengths = sorted((len(ids) + new for asked in step.asked for ids in asked.sequences for _ in range(asked.times)), reverse=True)
    return sum(lengths[:live])


def _shared(step: Step, folder: ModelFolder, reach: int, longest: int) -> int:
    """The length of the common prefix that is computed once for all sequences of a step."""
    try:
        plain = only_attends(folder.config, longest)
    except (KeyError, ValueError, AttributeError):  # transformers has no cache for one of its kinds of blocks
        plain = False
    return prefix_length([ids for asked in step.asked for ids in asked.sequences], reach) if plain else 0


def _micro_batches(asked: Asked, manner: ComputeLimits, kept: int, vocabulary: int, shared: int) -> Iterator[tuple[int, int, int]]:
    """Rows, tokens per row and positions with logits per row of each micro-batch of one intervention; shared stems are computed once."""
    rows = min(manner.rows, max(1, LOGIT_NUMBERS // (kept * vocabulary)) if kept else _MANY)
    forked = branches(asked.sequences, kept, shared) if kept and shared and not manner.together else None
    if forked is None:
        for batch in packed(asked.sequences, 0, manner.tokens, rows, _CPU, shared):
            yield batch.input_ids.shape[0], batch.input_ids.shape[1], kept
        return
    for batch in packed(forked.stems, 0, manner.tokens, manner.rows, _CPU, shared):
        yield batch.input_ids.shape[0], batch.input_ids.shape[1], 1
    for batch in packed(forked.tails, 0, manner.tokens, rows, _CPU):
        yield batch.input_ids.shape[0], batch.input_ids.shape[1], kept - 1
