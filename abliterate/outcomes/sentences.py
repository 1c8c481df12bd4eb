"""The sentences that a rule looks at, and whether it fires. Their position matters; quoted words don't count as the model's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from abliterate.outcomes.normalise import own_voice, plain, sentences
from abliterate.outcomes.ruleset import Rule, matches, shared, table
from abliterate.prompts.languages.recognition import language_of
from abliterate.prompts.languages.record import Language, languages

_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class Reading:
    """An answer in the model's own voice, split into sentences. ``opening``: the first two after words of sympathy or morals."""

    text: str
    parts: tuple[str, ...]
    opening: tuple[str, ...]
    length: int
    language: Language

    @classmethod
    def of(cls, answer: str) -> Reading:
        text = simplified(plain(own_voice(answer)))
        parts = [part for part in sentences(text) if _WORD.search(part)]
        language = language_of(text)
        return cls(text, tuple(parts), tuple(_opening(parts, language.reach.opening)), sum(map(len, parts)), language)

    @property
    def is_short(self) -> bool:
        """Whether it is looked at as a whole."""
        return self.length <= self.language.reach.short

    @staticmethod
    def unattributed(parts: tuple[str, ...]) -> tuple[str, ...]:
        """The sentences that don't report what somebody says."""
        return tuple(part for part in parts if not matches("attributed", part))


def fires(rule: Rule, reading: Reading, prompt: str | None) -> bool:
    """Whether the rule matches in the sentences that it looks at. Rules that count phrases ignore those of the prompt."""
    return fired(rule, reading, prompt) is not None


def fired(rule: Rule, reading: Reading, prompt: str | None) -> list[str] | None:
    """What the rule matched, as it stands in the normalised sentences; None if the rule does not fire."""
    if rule.where == "count":
        found = _counted(rule, reading, prompt or "") if reading.length <= reading.language.reach.count else {}
        return list(found) if len(found) >= rule.least else None
    if rule.where in ("all", "most"):
        if not reading.is_short:
            return None
        parts = [_hit(rule, (part, *(_clauses(part) if rule.where == "most" else ()))) for part in reading.parts]
        hits = [hit for hit in parts if hit is not None]
        share = 1.0 if rule.where == "all" else table("reach")["most"]
        return hits if len(parts) >= rule.least and len(hits) >= share * len(parts) > 0 else None
    hit = _hit(rule, _in_reach(rule, reading))
    return None if hit is None else [hit]


def _hit(rule: Rule, pieces: Sequence[str]) -> str | None:
    """What the rule matches in the first piece in which it does."""
    return next((found.group() for piece in pieces if (found := rule.pattern.match(piece))), None)


def _in_reach(rule: Rule, reading: Reading) -> list[str]:
    if rule.where == "first":
        return list(reading.parts[:1])
    parts = reading.opening
    if rule.where in ("short", "early") and reading.is_short:
        parts = reading.parts[: table("reach")["early"] if rule.where == "early" else None]
    if rule.outcome == "state_line":
        parts = reading.unattributed(parts)
    return [piece for part in parts for piece in (part, *_clauses(part))]


def _clauses(part: str) -> list[str]:
    """The text after each comma, colon or dash, up to the end of the sentence."""
    return [part[found.end() :] for found in shared("clause").finditer(part)]


def _opening(parts: list[str], longest: int) -> list[str]:
    reach = table("reach")
    skipped = 0
    while skipped < min(reach["preamble"], len(parts) - 1) and matches("preamble", parts[skipped]):
        skipped += 1
    found = parts[: skipped + 2]
    return found if len(found) < 2 or len(found[-2]) <= longest else found[:-1]


def _counted(rule: Rule, reading: Reading, prompt: str) -> dict[str, None]:
    """The different phrases of the rule that are not in the prompt, in sentences that don't report somebody's words."""
    own = " ".join(reading.unattributed(reading.parts))
    return dict.fromkeys(found.group() for found in rule.pattern.finditer(own) if found.group() not in prompt)


def simplified(text: str) -> str:
    """The text with the letters of another spelling replaced by those that the patterns are written in."""
    return text.translate(_respelled())


@cache
def _respelled() -> dict[int, int]:
    found = (language.writing.respelled for language in languages())
    return {ord(old): ord(new) for each in found if each for old, new in zip(each.of, each.to, strict=True)}
