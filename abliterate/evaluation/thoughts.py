"""Replies of models that think, with thoughts of bounded length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from abliterate.model.passes import Advance, Ids, Model, Pass, unheard
from abliterate.model.template import CLOSE, OPEN, closing, opens_thought


def replies_within(
    model: Model, prompts: Ids, budget: int, max_new_tokens: int, advance: Advance = unheard
) -> Iterator[tuple[int, list[int]]]:
    """Each prompt's place and its greedy reply: a thought of at most ``budget`` tokens, and ``max_new_tokens`` of an answer.

    A thought that is not over by then is closed, and the answer goes on behind it. The answer begins right behind the closing
    mark; of a reply that doesn't think all is answer.
    """
    opened = opens_thought(model.tokenizer)
    begun: list[tuple[int, list[int], int]] = []  # place, reply so far, tokens of the answer in it
    for _, places, replies in model.replies([Pass(prompts)], budget):
        for place, reply in zip(places, replies, strict=True):
            start = _answer_start(model.tokenizer, reply, opened)
            ended = len(reply) < budget
            if start is None and not ended:
                begun.append((place, [*reply, *closing(model.tokenizer)], 0))
            elif start is not None and not ended and len(reply) - start < max_new_tokens:
                begun.append((place, list(reply), len(reply) - start))
            else:
                yield place, list(reply if start is None else reply[: start + max_new_tokens])
                advance(1)
    if not begun:
        return
    asked = Pass([[*prompts[place], *reply] for place, reply, _ in begun])
    for _, numbers, rests in model.replies([asked], max_new_tokens):
        for number, rest in zip(numbers, rests, strict=True):
            place, reply, answered = begun[number]
            yield place, [*reply, *rest[: max_new_tokens - answered]]
            advance(1)


def _answer_start(tokenizer: PreTrainedTokenizerBase, reply: Sequence[int], opened: bool) -> int | None:
    """How many tokens of a reply come before its answer; None where it is still thinking."""
    text = _text(tokenizer, reply)
    if CLOSE not in text:
        bare = text.lstrip()
        return None if opened or bare.startswith(OPEN) else 0
    low, high = 0, len(reply)  # the fewest tokens that hold the mark
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if CLOSE in _text(tokenizer, reply[:middle]) else (middle + 1, high)
    return low


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids)))
