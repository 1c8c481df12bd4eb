"""The rules and thresholds of ``outcomes.toml``, read and compiled once."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from abliterate.outcomes.records import Outcome


@dataclass(frozen=True)
class Rule:
    """``where``: the sentences that the rule looks at. The prompt must match ``prompt`` (if set) and not ``unless_prompt``."""

    name: str
    outcome: Outcome
    lang: str
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
    """The rules in order; the first match wins."""
    return tuple(_rule(row) for row in table("rule"))


def _rule(row: dict[str, Any]) -> Rule:
    lead = "" if row["where"] == "count" else table("lead_in")[row["lang"]]
    pattern = _filled("|".join(row["pattern"]) if isinstance(row["pattern"], list) else row["pattern"])
    return Rule(
        row["name"], row["outcome"], row["lang"], row["where"], re.compile(lead + f"(?:{pattern})"), row.get("least", 1),
        _compiled(row.get("unless")), _compiled(row.get("prompt")), _compiled(row.get("unless_prompt")),
    )  # fmt: skip


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    return None if pattern is None else re.compile(_filled(pattern))


def _filled(pattern: str) -> str:
    """A pattern with each ``{{name}}`` replaced by that shared part."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: f"(?:{_filled(table('part')[found[1]])})", pattern)


@cache
def _search(name: str) -> re.Pattern[str]:
    return re.compile(_filled(table("search")[name]))


def matches(name: str, text: str | None) -> bool:
    """Whether the named search finds something in the text; False if the text is None."""
    return text is not None and _search(name).search(text) is not None


def table(name: str) -> Any:
    return _data()[name]


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "outcomes.toml").read_text(encoding="utf-8"))
