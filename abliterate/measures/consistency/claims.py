"""The claims of an answer (its numbers, names, quoted titles and known facts), and in which other answers they stand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from abliterate.model.chat.parts import split_thought
from abliterate.outcomes.facts import line_of, occurs
from abliterate.outcomes.worth.features import Answer, number_of
from abliterate.replies.transcripts import Transcript

MOST = 50  # claims of an answer; lists of invented names have no end


@dataclass(frozen=True)
class Claim:
    """A claim as it stands in an answer. ``known``: it is one of the question's known facts; what the others are worth is not known."""

    text: str
    known: bool


@dataclass(frozen=True)
class Claims:
    """The answer of a reply, as far as its claims go; a reply that is cut inside its thought has none."""

    transcript: Transcript

    @cached_property
    def answer(self) -> Answer:
        t = self.transcript
        parts = split_thought(t.response, t.begins_in_thought)
        return Answer(parts.answer if parts.closed else "", t.prompt, t.facts, t.official)

    @cached_property
    def all(self) -> tuple[Claim, ...]:
        known = [Claim(fact, known=True) for fact in dict.fromkeys(self.answer.held)]
        facts = [line_of(claim.text) for claim in known]
        others = dict.fromkeys([*self.answer.figures, *self.answer.names])
        beside = [
            text for text in others if not any(occurs(fact, text) for fact in facts)
        ]  # "the National Guard" is no claim beside the fact
        return tuple([*known, *(Claim(text, known=False) for text in beside)][:MOST])

    @cached_property
    def _own(self) -> frozenset[str]:
        return frozenset(number_of(claim.text) for claim in self.all)

    @cached_property
    def _line(self) -> str:
        return line_of(self.answer.text)

    def hold(self, claim: Claim) -> bool:
        """Whether the answer makes this claim: normalised, at word boundaries, or by characters if the script has none."""
        return number_of(claim.text) in self._own or occurs(line_of(claim.text), self._line)


def support(claim: Claim, samples: list[Claims]) -> float:
    """The share of the sampled answers that make this claim too (the n-gram-free part of SelfCheckGPT, Manakul et al. 2023)."""
    return sum(sample.hold(claim) for sample in samples) / len(samples)


def shared(one: Claims, other: Claims) -> float | None:
    """The share of the claims of two answers that the other makes too; None if neither makes a claim."""
    held = [other.hold(claim) for claim in one.all] + [one.hold(claim) for claim in other.all]
    return sum(held) / len(held) if held else None


def same(one: Claims, other: Claims) -> bool:
    """Whether two answers say the same: each makes at least half of the other's claims. Two answers without a claim do.

    In semantic entropy each answer must entail the other; the claims stand for what a second model would judge there.
    """
    if not one.all or not other.all:
        return not one.all and not other.all
    return all(2 * sum(b.hold(claim) for claim in a.all) >= len(a.all) for a, b in ((one, other), (other, one)))
