"""The words of an answer that decided its verdict, where they can be located in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from abliterate.outcomes.evasion import ECHOES, NOTHING_NEW, STANDING, after_echo, copied
from abliterate.outcomes.facts import line_of
from abliterate.outcomes.folded import Folded, Place, edged
from abliterate.outcomes.normalise import plain
from abliterate.outcomes.phrases import REPEATED
from abliterate.outcomes.ruleset import rules, shared
from abliterate.outcomes.sentences import Reading, fired
from abliterate.outcomes.verdict import BY_SUPPORT, NO_RULE, WORDING, Verdict
from abliterate.outcomes.worth.features import Answer, official_phrases
from abliterate.outcomes.worth.records import EVASIVE

Why = Literal["rule", "copied", "fact", "official", "claim"]
_LEAST = 2  # letters or digits of a phrase that is marked


@dataclass(frozen=True)
class Span:
    """Characters ``start`` to ``end`` of an answer. ``why``: they match the rule or wording that decided the outcome, are copied from the
    prompt, hold a known fact, are stock phrases of official lines or three words in a row of the prompt's own one, or claim a figure or
    name that neither question nor facts have."""

    start: int
    end: int
    why: Why


def deciding_words(answer: str, prompt: str | None, verdict: Verdict, facts: Sequence[str] = (), official: str | None = None) -> list[Span]:
    """The words that decided the verdict on an answer, in their order, without overlaps. Empty if none can be located: a measure
    decided, or another judge than the rules. Of an answer with a worth, what the rules go by is marked, whoever judged the worth."""
    if verdict.worth is None and verdict.rule == NO_RULE:
        return []
    folded = Folded.of(answer)
    found = [Span(*place, why) for why, place in _places(folded, answer, prompt, verdict, facts, official)]
    kept: list[Span] = []
    for span in found:  # what decided first has its words first
        if not any(span.start < other.end and other.start < span.end for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda span: span.start)


def _places(
    folded: Folded, answer: str, prompt: str | None, verdict: Verdict, facts: Sequence[str], official: str | None
) -> Iterator[tuple[Why, Place]]:
    echoed = verdict.reason == EVASIVE or verdict.rule.startswith((ECHOES, NOTHING_NEW, STANDING))
    if prompt is not None and echoed:
        yield from (("copied", folded.place(*place)) for place in copied(folded.text, prompt))
    yield from (("rule", place) for place in _of_rule(folded, answer, prompt, verdict.rule.removesuffix(BY_SUPPORT)))
    if verdict.worth is not None:
        yield from _of_worth(folded, Answer(answer, prompt or "", tuple(facts), official))


def _of_rule(folded: Folded, answer: str, prompt: str | None, rule: str) -> Iterator[Place]:
    """Where the phrases of the wording stand, or what the rule of this name matched."""
    if rule.startswith(WORDING):
        for gram in rule.removeprefix(WORDING).split(" | "):
            yield from _of_gram(folded, gram)
        return
    for name in ("impossible", "doubtful"):
        if rule.endswith(f"{name} pairs of words"):
            yield from folded.matches(shared(name).pattern)
    for phrase in _matched(answer, prompt, rule):
        yield from list(folded.phrase(phrase.strip(" ,;:!.-")))[:1]


def _matched(answer: str, prompt: str | None, name: str) -> list[str]:
    """What the rule of this name matched in the answer, or in what follows an echo of its prompt; empty if it is no rule's name."""
    asked = None if prompt is None else plain(prompt)
    for rule in rules():
        if name == rule.name or name.startswith(f"{rule.name}, then"):
            for text in (answer, after_echo(plain(answer), prompt)):
                if (found := fired(rule, Reading.of(text), asked)) is not None:
                    return found
    return []


def _of_gram(folded: Folded, gram: str) -> Iterator[Place]:
    """Where the words of a feature of the wording stand, the first time, or the last time for the end of an answer. Features that are no
    words (lengths, languages, what the rules found) stand nowhere."""
    tokens = [token for token in gram.removeprefix("opens: ").removeprefix("ends: ").split(" ") if token not in ("^", "$")]
    if gram.startswith(("rule: ", "rules: ", "asks: ")) or sum(map(_letters, tokens)) < _LEAST:
        return
    joined = r"\s*".join(map(_token, tokens))
    found = list(folded.matches(edged(joined, " ".join(tokens))))
    yield from found[-1:] if gram.startswith("ends: ") else found[:1]


def _token(token: str) -> str:
    return r"\w{1,24}?" if token == REPEATED else r"\d+" if token == "0" else re.escape(token)


def _letters(token: str) -> int:
    return 0 if token == REPEATED else sum(map(str.isalnum, token))


def _of_worth(folded: Folded, answer: Answer) -> Iterator[tuple[Why, Place]]:
    yield from (("fact", place) for place in _of_phrases(folded, answer.held))
    yield from (("official", place) for place in _of_official_line(folded, answer))
    yield from (("official", place) for place in _of_phrases(folded, official_phrases(answer)))
    yield from (("claim", place) for place in _of_phrases(folded, [*answer.figures, *answer.names]))


def _of_phrases(folded: Folded, phrases: Sequence[str]) -> Iterator[Place]:
    return (place for phrase in phrases for place in folded.phrase(line_of(phrase)))


def _of_official_line(folded: Folded, answer: Answer) -> Iterator[Place]:
    """Where words of the prompt's own official line stand that the question and the facts lack."""
    for start, end in copied(folded.text, answer.official or ""):
        if line_of(folded.text[start:end]) not in answer.known:
            yield folded.place(start, end)
