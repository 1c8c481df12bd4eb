"""Replies of reasoning models, with thoughts of bounded length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from abliterate.compute.draws import Draw
from abliterate.compute.passes import Advance, Ids, Model, Pass, no_progress
from abliterate.model.chat.parts import split_thought
from abliterate.model.chat.thinking import closing, decode, opens_thought, tokens_before


def replies_within(
    model: Model,
    prompts: Ids,
    budget: int,
    max_new_tokens: int,
    advance: Advance = no_progress,
    draws: Sequence[Draw] | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """Each prompt's index and its reply: a thought of at most ``budget`` tokens and an answer of at most ``max_new_tokens``.

    A thought that reaches the budget is closed, and the model continues with the answer, which begins right after the closing mark. A
    reply without a thought is all answer. ``draws``: one for each prompt, if the replies are sampled and not greedy.
    """
    opened, end = opens_thought(model.tokenizer), closing(model.tokenizer)
    begun: list[tuple[int, list[int], int]] = []  # index of the prompt, reply so far, answer tokens in it
    for _, places, replies in model.replies([Pass(prompts, draws=draws)], budget):
        for place, reply in zip(places, replies, strict=True):
            start = answer_start(model.tokenizer, reply, opened)
            ended = len(reply) < budget
            if start is None and not ended:
                begun.append((place, [*reply, *end], 0))
            elif start is not None and not ended and len(reply) - start < max_new_tokens:
                begun.append((place, list(reply), len(reply) - start))
            else:
                yield place, list(reply if start is None else reply[: start + max_new_tokens])
                advance(1)
    if not begun:
        return
    later = None if draws is None else [draws[place].after(len(reply)) for place, reply, _ in begun]
    asked = Pass([[*prompts[place], *reply] for place, reply, _ in begun], draws=later)
    for _, numbers, rests in model.replies([asked], max_new_tokens):
        for number, rest in zip(numbers, rests, strict=True):
            place, reply, answered = begun[number]
            yield place, [*reply, *rest[: max_new_tokens - answered]]
            advance(1)


def answer_start(tokenizer: PreTrainedTokenizerBase, reply: Sequence[int], opened: bool) -> int | None:
    """Number of tokens before the answer; None if the reply is still in its thought."""
    parts = split_thought(decode(tokenizer, reply), opened)
    return tokens_before(tokenizer, reply, parts.start) if parts.closed else None
