"""For a model that thinks: combine its withholding lines with the thoughts of prompts that it answers.

A model that can no longer close its thought at once may think first and then withhold. As long as its thoughts are empty, none of its own
replies shows this. So both parts come from the model: the thought from a prompt that it answers, the line from a prompt that it withholds.
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

LINES = 2  # lines tried per prompt: its own, and the most frequent other line in its language


@dataclass(frozen=True)
class Line:
    """``tokens`` of a line that may withhold a prompt, after a closed ``thought`` (empty if there is none)."""

    thought: Sequence[int]
    tokens: Sequence[int]


def parted(tokenizer: PreTrainedTokenizerBase, reply: Sequence[int]) -> tuple[list[int], list[int]]:
    """Split a reply into its thought, with the closing mark and the white space after it, and the rest. If nothing closes the thought, all
    of the reply is thought."""
    parts = split_thought(decode(tokenizer, reply), True)
    end = tokens_before(tokenizer, reply, parts.start) if parts.closed else len(reply)
    while end < len(reply) and not decode(tokenizer, reply[end : end + 1]).strip():
        end += 1
    return list(reply[:end]), list(reply[end:])


def is_empty(tokenizer: PreTrainedTokenizerBase, thought: Sequence[int]) -> bool:
    """Whether a thought contains only its closing mark."""
    return not split_thought(decode(tokenizer, thought), True).thought


def lines_after_thoughts(
    tokenizer: PreTrainedTokenizerBase,
    target: Sequence[tuple[Prompt, Sequence[int]]],
    answered: Sequence[tuple[Prompt, Sequence[int]]],
) -> list[list[Line]]:
    """For each withheld prompt, lines after the thought of its twin, or of another answered prompt in the same language.

    ``target`` and ``answered`` hold prompts with their replies. Empty thoughts are not used. A thought that the reply does not close is cut
    and closed. The list of a prompt is empty if there is no thought or no line for it.
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
    """The thought of the prompt's twin, else the thoughts in its language in turn; empty if there are none."""
    twin = next((thought for other, thought in thoughts if other.pair == prompt.id), None)
    same = [thought for other, thought in thoughts if other.lang == prompt.lang]
    return twin or (same[number % len(same)] if same else [])


def _closed(tokenizer: PreTrainedTokenizerBase, thought: list[int]) -> list[int]:
    return thought if split_thought(decode(tokenizer, thought), True).closed else [*thought[:THOUGHT_TOKENS], *closing(tokenizer)]
