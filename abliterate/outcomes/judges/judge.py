"""The interface of all judges: a name, and a callable from transcripts to verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from abliterate.measures.detector import RULES
from abliterate.model.chat.parts import split_thought
from abliterate.outcomes.facts import has_fact
from abliterate.outcomes.records import GIVEN, Outcome
from abliterate.outcomes.verdict import Verdict, valued
from abliterate.replies.transcripts import Transcript

UNJUDGED = "unjudged"  # the outcome, in files, of a reply without a verdict; it counts in no rate
Advance = Callable[[int], None]


@runtime_checkable
class Judge(Protocol):
    """``name``: the judge's name in reports. A verdict of None means that it could not judge the reply."""

    @property
    def name(self) -> str: ...

    def __call__(self, transcripts: Sequence[Transcript], advance: Advance = ...) -> list[Verdict | None]:
        """One verdict per transcript, in order; ``advance`` is called with the number of newly judged ones."""
        ...


@dataclass(frozen=True)
class Rules:
    """The built-in judge: rules, measures and learned weights."""

    name: str = RULES

    def __call__(self, transcripts: Sequence[Transcript], advance: Advance = lambda done: None) -> list[Verdict | None]:
        found: list[Verdict | None] = []
        for transcript in transcripts:
            found.append(transcript.verdict())
            advance(1)
        return found


@dataclass(frozen=True)
class Case:
    """What another judge sees: a prompt and its answer, without the thought. ``facts`` and the ``official`` line are what the worth of the
    answer is judged by; without facts it isn't asked."""

    prompt: str
    answer: str
    facts: tuple[str, ...] = ()
    official: str | None = None


def case_of(transcript: Transcript) -> Case | None:
    """The case of a transcript; None if no judge is needed, since the reply has no answer after its thought or an empty one."""
    parts = split_thought(transcript.response, transcript.begins_in_thought)
    if not parts.closed or not parts.answer:
        return None
    return Case(transcript.prompt, parts.answer, transcript.facts, transcript.official if transcript.facts else None)


def verdict_of(transcript: Transcript, outcome: Outcome, rule: str) -> Verdict:
    """The verdict for an outcome that another judge gave. The rules judge the thought, which other judges don't see, the reason and the
    worth."""
    by_rules, facts = transcript.verdict(), transcript.facts
    answer = split_thought(transcript.response, transcript.begins_in_thought).answer
    substance = outcome == "answered" and has_fact(answer, facts) if facts else None
    return valued(Verdict(outcome, rule, by_rules.thought, substance), answer, facts, transcript.prompt, transcript.official)


def outcome_named(word: str) -> Outcome | None:
    """The outcome that a word names, in any spelling (``State line``, ``state-line``); None for any other word."""
    plain = "_".join(word.strip().casefold().replace("-", " ").replace("_", " ").split())
    return next((outcome for outcome in GIVEN if outcome == plain), None)
