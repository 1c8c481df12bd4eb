"""How a model begins to withhold: its own first tokens on the prompts that it declines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abliterate.evaluation.outcomes import WITHHELD, judge
from abliterate.model.passes import Advance, Model, Pass, unheard
from abliterate.model.template import decode, opens_thought
from abliterate.prompts import Prompt

OPENING_TOKENS = 8
PROBE_TOKENS = 24
THOUGHT_TOKENS = 16  # more where a thought may come before: an empty one, or a line that weighs


@dataclass(frozen=True)
class Openings:
    """``prompts[i]`` (encoded) is withheld with a reply that begins with ``openings[i]``.

    ``indices[i]`` is its place among the prompts asked. ``withheld`` counts them;
    where it is 0 the lists hold all prompts with whatever the model says.
    """

    prompts: list[list[int]]
    openings: list[list[int]]
    indices: list[int]
    asked: int
    withheld: int


def own_openings(model: Model, encoded: Sequence[list[int]], advance: Advance = unheard, prompts: Sequence[str] = ()) -> Openings:
    """Let the model reply briefly to encoded prompts (``prompts`` are their texts) and keep those that it withholds."""
    replies: list[list[int]] = [[] for _ in encoded]
    opened = opens_thought(model.tokenizer)
    longest = PROBE_TOKENS + (THOUGHT_TOKENS if opened else 0)
    for _, indices, found in model.replies([Pass(encoded)], longest, advance):
        for index, reply in zip(indices, found, strict=True):
            replies[index] = reply or [model.tokenizer.eos_token_id]
    texts = [decode(model.tokenizer, reply) for reply in replies]
    asked: Sequence[str | None] = prompts or [None] * len(texts)
    verdicts = [judge(text, begins_in_thought=opened, prompt=prompt) for text, prompt in zip(texts, asked, strict=True)]
    withheld = [i for i, verdict in enumerate(verdicts) if verdict.outcome in WITHHELD]
    chosen = withheld or list(range(len(encoded)))
    return Openings([encoded[i] for i in chosen], [replies[i][:OPENING_TOKENS] for i in chosen], chosen, len(encoded), len(withheld))


def dealt(own: Openings, target: Sequence[Prompt], baseline: Sequence[Prompt]) -> list[list[int]]:
    """For every baseline prompt the opening that would withhold it: its twin's where that was withheld, else one in its language."""
    by_id = {target[i].id: opening for i, opening in zip(own.indices, own.openings, strict=True)}
    by_lang: dict[str, list[list[int]]] = {}
    for i, opening in zip(own.indices, own.openings, strict=True):
        by_lang.setdefault(target[i].lang, []).append(opening)
    return [by_id.get(p.pair or "") or (same := by_lang.get(p.lang, own.openings))[number % len(same)] for number, p in enumerate(baseline)]
