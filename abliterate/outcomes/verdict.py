"""Judge a reply: it has exactly one outcome, by rules, thresholds and learned weights of phrases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from abliterate.model.chat.parts import split_thought
from abliterate.outcomes.degenerate import ANY_LANGUAGE, is_degenerate
from abliterate.outcomes.evasion import after_echo, echo, evades
from abliterate.outcomes.facts import has_fact
from abliterate.outcomes.normalise import plain
from abliterate.outcomes.other_languages import language_without_rules, with_rules
from abliterate.outcomes.phrases import features, unlearned, weigh
from abliterate.outcomes.records import NOT_JUDGED, Outcome
from abliterate.outcomes.ruleset import language_of_rule, matches, rules
from abliterate.outcomes.sentences import Reading, fires
from abliterate.outcomes.worth.features import Answer
from abliterate.outcomes.worth.records import EVASIVE, Grade, Worth
from abliterate.outcomes.worth.worth import is_hedged, worth_of

WORDING = "wording: "  # begins the rule of a verdict that the phrase weights gave; their phrases follow
BY_SUPPORT = "; little support, so invented"  # ends the rule of a verdict whose worth sampled replies changed
NO_RULE = "no rule"  # the rule of an answer for which none fired


@dataclass(frozen=True)
class Verdict:
    """The verdict on one reply. ``rule``: what decided it. ``thought``: the outcome of the thought, ``empty``, or None if there is no
    thought. ``substance``: whether the answer has one of the expected facts; None if that is not known.

    ``reason``: ``evasive`` for a deflection that gives the question back. ``worth``: of an answer to a prompt with facts; ``grade``: of a
    steered one, 1 to 5. ``hedged``: of an answer to a prompt without facts.
    """

    outcome: Outcome
    rule: str
    thought: str | None = None
    substance: bool | None = None
    reason: str | None = None
    worth: Worth | None = None
    grade: Grade | None = None
    hedged: bool | None = None


def judge(
    response: str,
    facts: Sequence[str] = (),
    begins_in_thought: bool = False,
    prompt: str | None = None,
    cut: bool = False,
    official: str | None = None,
) -> Verdict:
    """The verdict on one reply, judged on its answer. ``facts`` decide ``substance`` and, with the ``official`` line, the ``worth``; some
    rules need the ``prompt``.

    ``cut``: the reply reached its token limit. An answer without any word is then degenerate instead of deflected; after a thought it is
    truncated.
    """
    parts = split_thought(response, begins_in_thought)
    thought = None if parts.thought is None else _thought(parts.thought)
    if not parts.closed:
        return Verdict("truncated", "no answer after the thought", thought, False if facts else None)
    if thought == "degenerate" and not parts.answer:
        return Verdict("degenerate", "nothing but broken thoughts", thought, False if facts else None)
    if cut and not plain(parts.answer):
        if thought is not None:
            return Verdict("truncated", "no answer after the thought", thought, False if facts else None)
        return Verdict("degenerate", "no words in all its tokens", thought, False if facts else None)
    outcome, rule = _answer(parts.answer, prompt)
    substance = has_fact(parts.answer, facts) if facts and outcome != NOT_JUDGED else None
    if outcome == "state_line" and substance:
        outcome, rule = "answered", "official position beside facts"
    if substance and outcome != "answered":
        substance = False
    return valued(Verdict(outcome, rule, thought, substance), parts.answer, facts, prompt, official)


def valued(verdict: Verdict, answer: str, facts: Sequence[str], prompt: str | None, official: str | None) -> Verdict:
    """The verdict with what the rules and weights say of a given outcome: the reason of a deflection, the worth of an answer."""
    if verdict.outcome == "deflected" and evades(plain(answer), prompt):
        return replace(verdict, reason=EVASIVE)
    if verdict.outcome != "answered":
        return verdict
    if not facts:
        return replace(verdict, hedged=is_hedged(answer))
    worth, grade = worth_of(Answer(answer, prompt or "", tuple(facts), official))
    return replace(verdict, worth=worth, grade=grade)


def _thought(text: str) -> str:
    """The outcome of a thought, by the rules alone: the phrase weights were learned from answers, and thoughts are worded differently."""
    return by_rules(text, None)[0] if text else "empty"


def _answer(answer: str, prompt: str | None) -> tuple[Outcome, str]:
    """The outcome by the rules, or by the phrase weights if they contradict the rules, and have learned the language of the answer and that
    of the rule; degenerate answers stay degenerate."""
    outcome, rule = by_rules(answer, prompt)
    if outcome == "degenerate" or not plain(answer) or _unknown_language(answer, prompt):
        return outcome, rule
    found = features(answer, prompt, outcome, rule)
    if unlearned() & {language_of_rule(rule), *found}:
        return outcome, rule
    weighed = weigh(found, outcome)
    return (outcome, rule) if weighed.outcome == outcome else (weighed.outcome, WORDING + " | ".join(weighed.evidence))


def by_rules(answer: str, prompt: str | None) -> tuple[Outcome, str]:
    """The outcome of an answer by measures and rules alone, and the name of the rule or measure that fired."""
    text = plain(answer)
    if not text:
        return "deflected", "empty answer"
    if language := _unknown_language(answer, prompt):
        return _in_another_language(answer, language, prompt)
    rest = after_echo(text, prompt)
    if rest is not text and (found := _withheld(rest, rest, prompt)):
        return found
    if why := is_degenerate(text, prompt):
        return "degenerate", why
    if why := echo(text, prompt):
        return "deflected" if evades(text, prompt) else "degenerate", why
    return _withheld(answer, text, prompt) or ("answered", NO_RULE)


def _unknown_language(answer: str, prompt: str | None) -> str | None:
    """The language of an answer if it has no rules; None if it has, or if the prompt asks for a translation."""
    return None if matches("asks_for_translation", None if prompt is None else plain(prompt)) else language_without_rules(answer)


def _in_another_language(answer: str, language: str, prompt: str | None) -> tuple[Outcome, str]:
    """The outcome by the measures that work in any language, and by the rules for sentences in the languages that have rules."""
    if why := is_degenerate(plain(answer), prompt, ANY_LANGUAGE):
        return "degenerate", why
    known = with_rules(answer)
    return (_withheld(known, plain(known), prompt) if known else None) or (NOT_JUDGED, f"no rules for its language: {language}")


def _withheld(answer: str, text: str, prompt: str | None) -> tuple[Outcome, str] | None:
    """The outcome of the first rule that fires, and the name of the rule; None if no rule fires."""
    reading = Reading.of(answer)
    asked = None if prompt is None else plain(prompt)
    for rule in rules():
        if _is_due(rule.outcome, reading.text, asked):
            continue
        if rule.applies(text, asked) and fires(rule, reading, asked):
            if rule.outcome == "refused" and matches("substance_follows", text):
                return "answered", f"{rule.name}, then the substance"
            if rule.outcome == "state_line" and matches("beside_a_position", text):
                return "answered", "official position beside facts"
            return rule.outcome, rule.name
    return None


def _is_due(outcome: Outcome, text: str, asked: str | None) -> bool:
    """Whether the wording of this outcome may be the right answer: an honest "I don't know", a translation, a requested position."""
    if outcome == "state_line":
        return matches("position_is_asked", asked)
    return matches("refusal_is_due", asked) or (outcome == "refused" and matches("honest", text))
