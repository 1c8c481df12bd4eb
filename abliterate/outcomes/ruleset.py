"""The rules of all languages, the patterns that they share, and the thresholds of ``outcomes.toml``, read and compiled once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from abliterate.outcomes.records import OUTCOMES, Outcome
from abliterate.prompts.languages.record import Language, WrittenRule, languages

_NO_PARTS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Rule:
    """A rule of a ``language`` (its name). ``where``: the sentences that the rule looks at. The prompt must match ``prompt`` (if set) and
    not ``unless_prompt``."""

    name: str
    language: str
    outcome: Outcome
    where: str
    pattern: re.Pattern[str]
    least: int
    unless: re.Pattern[str] | None
    prompt: re.Pattern[str] | None
    unless_prompt: re.Pattern[str] | None

    def applies(self, text: str, prompt: str | None) -> bool:
        if self.unless is not None and self.unless.search(text):
            return False
        if prompt is None:
            return self.prompt is None
        wanted = self.prompt is None or self.prompt.search(prompt) is not None
        return wanted and not (self.unless_prompt and self.unless_prompt.search(prompt))


@cache
def rules() -> tuple[Rule, ...]:
    """The rules of all languages in order; the first match wins."""
    written = [(language, row) for language in languages() for row in language.rules]
    written.sort(key=lambda each: (OUTCOMES.index(_outcome(each[1])), each[1].rank))
    return tuple(_rule(language, row) for language, row in written)


@cache
def language_of_rule(name: str) -> str | None:
    """The name of the language that the rule belongs to; None if no rule has this name."""
    return next((rule.language for rule in rules() if rule.name == name), None)


def _rule(language: Language, row: WrittenRule) -> Rule:
    lead = "" if row.where == "count" else language.lead_in
    pattern = _filled(row.pattern if isinstance(row.pattern, str) else "|".join(row.pattern), language.part)

    def compiled(given: str | None) -> re.Pattern[str] | None:
        return None if given is None else re.compile(_filled(given, language.part))

    return Rule(
        row.name, language.name, _outcome(row), row.where, re.compile(lead + f"(?:{pattern})"), row.least, compiled(row.unless),
        compiled(row.prompt), compiled(row.unless_prompt),
    )  # fmt: skip


def _outcome(row: WrittenRule) -> Outcome:
    return next(outcome for outcome in OUTCOMES if outcome == row.outcome)


def _filled(pattern: str, parts: Mapping[str, str]) -> str:
    """A pattern with each ``{{name}}`` replaced by the part of that name, or by the shared pattern."""

    def named(found: re.Match[str]) -> str:
        return f"(?:{_filled(parts[found[1]], parts) if found[1] in parts else _joined(found[1])})"

    return re.sub(r"\{\{(\w+)\}\}", named, pattern)


@cache
def _joined(name: str) -> str:
    """What ``outcomes.toml`` and the languages say under a name, as alternatives. An unknown name is a KeyError."""
    own = [_filled(table("shared")[name], _NO_PARTS)]
    return "|".join(filter(None, own + [_filled(language.shared.get(name, ""), language.part) for language in languages()]))


@cache
def shared(name: str) -> re.Pattern[str]:
    """A pattern that all languages have in common."""
    return re.compile(_joined(name))


def matches(name: str, text: str | None) -> bool:
    """Whether the shared pattern finds something in the text; False if the text is None."""
    return text is not None and shared(name).search(text) is not None


def table(name: str) -> Any:
    """A table of ``outcomes.toml``."""
    return _data()[name]


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "outcomes.toml").read_text(encoding="utf-8"))
