"""Of a model that thinks: the lines with which it withholds, put behind a thought that it would have when it answers.

A model that is kept from closing its thought at once may think first and withhold then; none of its own replies shows how, as long as
its thoughts are empty. Both halves are its own: the thought of a prompt that it answers, and the line of the prompt that it doesn't.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from abliterate.choice.openings import OPENING_TOKENS, THOUGHT_TOKENS
from abliterate.model.chat.parts import split_thought
from abliterate.model.chat.thinking import closing, decode, tokens_before
from abliterate.prompts import Prompt

LINES = 2  # that are tried on a prompt: its own, and the most frequent other one of its language


@dataclass(frozen=True)
class Line:
    """``tokens`` with which a prompt may be withheld, behind a ``thought`` that has been closed."""

    thought: Sequence[int]
    tokens: Sequence[int]


def parted(tokenizer: PreTrainedTokenizerBase, reply: Sequence[int]) -> tuple[list[int], list[int]]:
    """A reply's thought, with its closing mark and the white space behind, and the rest; all of it is thought where nothing closes it."""
    parts = split_thought(decode(tokenizer, reply), True)
    end = tokens_before(tokenizer, reply, parts.start) if parts.closed else len(reply)
    while end < len(reply) and not decode(tokenizer, reply[end : end + 1]).strip():
        end += 1
    return list(reply[:end]), list(reply[end:])


def is_empty(tokenizer: PreTrainedTokenizerBase, thought: Sequence[int]) -> bool:
    """Whether there is nothing in a thought but its end."""
    return not split_thought(decode(tokenizer, thought), True).thought


def lines_after_thoughts(
    tokenizer: PreTrainedTokenizerBase,
    target: Sequence[tuple[Prompt, Sequence[int]]],
    answered: Sequence[tuple[Prompt, Sequence[int]]],
) -> list[list[Line]]:
    """For each withheld prompt, with its reply, lines behind the thought of its twin, or of another answered prompt of its language.

    Thoughts that are closed at once are none. One that isn't closed within what was generated is cut short. Empty where nobody's reply
    holds a line behind a thought.
    """
    own = [tuple(parted(tokenizer, reply)[1][:OPENING_TOKENS]) for _, reply in target]
    frequent: dict[str, Counter[tuple[int, ...]]] = {}
    for (prompt, _), line in zip(target, own, strict=True):
        frequent.setdefault(prompt.lang, Counter()).update([line] if line else [])
    theirs = [(prompt, parted(tokenizer, reply)[0]) for prompt, reply in answered]
    thoughts = [(prompt, _closed(tokenizer, thought)) for prompt, thought in theirs if not is_empty(tokenizer, thought)]
    found = []
    for number, ((prompt, _), line) in enumerate(zip(target, own, strict=True)):
        counts = frequent[prompt.lang]
        others = sorted((other for other in counts if other != line), key=lambda other: (-counts[other], other))
        lines = [line, *others] if line else others
        thought = _thought_for(prompt, number, thoughts)
        found.append([Line(thought, list(tokens)) for tokens in lines[:LINES]] if thought else [])
    return found


def _thought_for(prompt: Prompt, number: int, thoughts: Sequence[tuple[Prompt, list[int]]]) -> list[int]:
    """Its twin's, else one of its language, each in turn; none where there are none."""
    twin = next((thought for other, thought in thoughts if other.pair == prompt.id), None)
    same = [thought for other, thought in thoughts if other.lang == prompt.lang]
    return twin or (same[number % len(same)] if same else [])


def _closed(tokenizer: PreTrainedTokenizerBase, thought: list[int]) -> list[int]:
    return thought if split_thought(decode(tokenizer, thought), True).closed else [*thought[:THOUGHT_TOKENS], *closing(tokenizer)]
