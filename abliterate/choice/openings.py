"""Openings: the first tokens of the model's own replies to the prompts that it withholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abliterate.prompts import Prompt

OPENING_TOKENS = 8
PROBE_TOKENS = 24
THOUGHT_TOKENS = 16  # extra tokens if the model may think first: room for an empty thought or one short line


@dataclass(frozen=True)
class Openings:
    """The model withholds ``prompts[i]`` (token ids) with a reply that begins with ``openings[i]``.

    ``indices[i]`` is the prompt's index among all target prompts; ``asked`` is how many of those there are.
    """

    prompts: list[list[int]]
    openings: list[list[int]]
    indices: list[int]
    asked: int

    @property
    def withheld(self) -> int:
        """How many of the target prompts the model withholds."""
        return len(self.prompts)


def dealt(own: Openings, target: Sequence[Prompt], baseline: Sequence[Prompt]) -> list[list[int]]:
    """For every baseline prompt, an opening that would withhold it: the opening of its twin if the twin was withheld, else one in the same
    language, else any."""
    by_id = {target[i].id: opening for i, opening in zip(own.indices, own.openings, strict=True)}
    by_lang: dict[str, list[list[int]]] = {}
    for i, opening in zip(own.indices, own.openings, strict=True):
        by_lang.setdefault(target[i].lang, []).append(opening)
    return [by_id.get(p.pair or "") or (same := by_lang.get(p.lang, own.openings))[number % len(same)] for number, p in enumerate(baseline)]
