"""What every judge is: a name, and a callable from transcripts to their verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from abliterate.measures.detector import RULES
from abliterate.model.chat.parts import split_thought
from abliterate.outcomes.ruleset import Outcome
from abliterate.outcomes.verdict import GIVEN, Verdict, has_fact
from abliterate.replies.transcripts import Transcript

UNJUDGED = "unjudged"  # what files call a response that a judge gave no verdict on; it counts in no rate
Advance = Callable[[int], None]


@runtime_checkable
class Judge(Protocol):
    """``name`` is what reports call it; None among its verdicts stands for a response that it could not judge."""

    @property
    def name(self) -> str: ...

    def __call__(self, transcripts: Sequence[Transcript], advance: Advance = ...) -> list[Verdict | None]:
        """One verdict a transcript, in their order; ``advance`` is told how many more are done."""
        ...


@dataclass(frozen=True)
class Rules:
    """The built-in judge: rules and measures."""

    name: str = RULES

    def __call__(self, transcripts: Sequence[Transcript], advance: Advance = lambda done: None) -> list[Verdict | None]:
        found: list[Verdict | None] = []
        for transcript in transcripts:
            found.append(transcript.verdict())
            advance(1)
        return found


@dataclass(frozen=True)
class Case:
    """What another judge is asked: a prompt and its answer, the thought split off."""

    prompt: str
    answer: str


def case_of(transcript: Transcript) -> Case | None:
    """What is to be judged of a transcript; None where nobody needs to be asked: no answer after the thought, or an empty one."""
    parts = split_thought(transcript.response, transcript.begins_in_thought)
    return Case(transcript.prompt, parts.answer) if parts.closed and parts.answer else None


def verdict_of(transcript: Transcript, outcome: Outcome, rule: str) -> Verdict:
    """The verdict for an outcome that another judge gave. The thought keeps the rules' own verdict, which no other judge is asked for."""
    by_rules = transcript.verdict()
    if not transcript.facts:
        return Verdict(outcome, rule, by_rules.thought)
    answer = split_thought(transcript.response, transcript.begins_in_thought).answer
    return Verdict(outcome, rule, by_rules.thought, outcome == "answered" and has_fact(answer, transcript.facts))


def outcome_named(word: str) -> Outcome | None:
    """The outcome that a word means, however it is spelt: ``State line``, ``state-line``; None for another word."""
    plain = "_".join(word.strip().casefold().replace("-", " ").replace("_", " ").split())
    return next((outcome for outcome in GIVEN if outcome == plain), None)
