"""The unedited model's short replies, and which of them withhold. The yardstick and the tuner's examples are made of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from abliterate.choice.openings import PROBE_TOKENS, THOUGHT_TOKENS
from abliterate.compute.forward import Continued
from abliterate.compute.passes import Advance, Ids, Model, Pass, no_progress
from abliterate.model.chat.ends import advice_of, end_ids, said_nothing
from abliterate.model.chat.template import encode
from abliterate.model.chat.thinking import decode, opens_thought
from abliterate.outcomes.records import NOT_JUDGED, WITHHELD, Outcome
from abliterate.outcomes.verdict import judge
from abliterate.prompts import Prompt, Role

A = TypeVar("A")


@dataclass(frozen=True)
class JudgedReplies:
    """Prompts, their token ids (``prompts``) and those of the ``replies``, and the outcome of each reply."""

    texts: Sequence[Prompt]
    prompts: list[list[int]]
    replies: list[list[int]]
    outcomes: list[Outcome]

    @property
    def withheld(self) -> list[bool | None]:
        """For each reply, whether it withholds; None if it isn't judged, and then it is not used."""
        return [withholds(outcome) for outcome in self.outcomes]

    def chosen(self, indices: Sequence[int], length: int) -> Continued:
        """Some of the prompts, each continued by the first ``length`` tokens of its reply."""
        return Continued([self.prompts[i] for i in indices], [self.replies[i][:length] for i in indices])


def withholds(outcome: Outcome) -> bool | None:
    """Whether an outcome counts as withheld; None for a reply that isn't judged."""
    return None if outcome == NOT_JUDGED else outcome in WITHHELD


def distinct(prompts: Mapping[Role, A]) -> dict[Role, A]:
    """The roles to ask. A baseline with the same prompts as the harmless set is left out, so that they are not asked twice."""
    return {role: asked for role, asked in prompts.items() if role != "baseline" or asked != prompts.get("harmless")}


def short(tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens of a short reply."""
    return PROBE_TOKENS + (THOUGHT_TOKENS if opens_thought(tokenizer) else 0)


def short_replies(model: Model, prompts: Mapping[Role, Sequence[Prompt]], advance: Advance = no_progress) -> dict[Role, list[list[int]]]:
    """Short replies (token ids) to all prompts, in one call. An empty reply is represented by the end token."""
    asked = distinct(prompts)
    roles = list(asked)
    encoded = {role: encode(model.tokenizer, [p.text for p in asked[role]]) for role in roles}
    replies: dict[Role, list[list[int]]] = {role: [[] for _ in encoded[role]] for role in roles}
    longest = short(model.tokenizer)
    silence = nothing(model)
    for number, indices, found in model.replies([Pass(encoded[role]) for role in roles], longest, advance):
        for index, reply in zip(indices, found, strict=True):
            replies[roles[number]][index] = list(reply) or silence
    return replies


def nothing(model: Model) -> list[int]:
    """The token ids that represent an empty reply: the end token."""
    return said_nothing(end_ids(advice_of(model.folder), model.tokenizer), model.tokenizer)


def outcome_of(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, reply: Sequence[int], thought: Sequence[int] = ()) -> Outcome:
    """The outcome of a short reply (token ids), which may continue a given ``thought``."""
    text, cut = decode(tokenizer, [*thought, *reply]), len(reply) >= short(tokenizer)
    return judge(text, begins_in_thought=opens_thought(tokenizer), prompt=prompt.text, cut=cut).outcome


def judged(model: Model, prompts: Mapping[Role, Sequence[Prompt]], replies: Mapping[Role, Ids]) -> dict[Role, JudgedReplies]:
    """By role, the prompts with their short replies and outcomes."""
    return {
        role: JudgedReplies(
            asked,
            encode(model.tokenizer, [p.text for p in asked]),
            [list(ids) for ids in replies[role]],
            [outcome_of(model.tokenizer, p, reply) for p, reply in zip(asked, replies[role], strict=True)],
        )
        for role, asked in prompts.items()
    }
