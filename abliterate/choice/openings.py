"""How a model begins to withhold: its own first tokens on the prompts that it declines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abliterate.prompts import Prompt

OPENING_TOKENS = 8
PROBE_TOKENS = 24
THOUGHT_TOKENS = 16  # more where a thought may come before: an empty one, or a line that weighs


@dataclass(frozen=True)
class Openings:
    """``prompts[i]`` (encoded) is withheld with a reply that begins with ``openings[i]``.

    ``indices[i]`` is its place among the prompts ``asked``.
    """

    prompts: list[list[int]]
    openings: list[list[int]]
    indices: list[int]
    asked: int

    @property
    def withheld(self) -> int:
        """How many of the prompts asked are withheld."""
        return len(self.prompts)


def dealt(own: Openings, target: Sequence[Prompt], baseline: Sequence[Prompt]) -> list[list[int]]:
    """For every baseline prompt the opening that would withhold it: its twin's where that was withheld, else one in its language."""
    by_id = {target[i].id: opening for i, opening in zip(own.indices, own.openings, strict=True)}
    by_lang: dict[str, list[list[int]]] = {}
    for i, opening in zip(own.indices, own.openings, strict=True):
        by_lang.setdefault(target[i].lang, []).append(opening)
    return [by_id.get(p.pair or "") or (same := by_lang.get(p.lang, own.openings))[number % len(same)] for number, p in enumerate(baseline)]
