"""The marks that models put around their thoughts: a table (``thought_marks.toml``), read once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_NOTHING = re.compile(r"(?!)")


@dataclass(frozen=True)
class Marks:
    """One family: what is written around a thought, and the patterns that recognise it; the table explains each field."""

    name: str
    open: str
    close: str
    closing: str
    at_once: str
    without: str | None
    tokens: tuple[str, ...]
    opens: re.Pattern[str]
    closes: re.Pattern[str]
    seam: re.Pattern[str]
    begins: re.Pattern[str]
    ends: re.Pattern[str]
    stray: bool

    @property
    def is_written(self) -> bool:
        """Whether these marks can be written for a model; the other families are only recognised in text."""
        return bool(self.tokens)


@cache
def table() -> tuple[Marks, ...]:
    """Every family, in the order of the table."""
    rows = tomllib.loads((Path(__file__).parent / "thought_marks.toml").read_text(encoding="utf-8"))["marks"]
    return tuple(_marks(row) for row in rows)


@cache
def _signs() -> tuple[str, ...]:
    """Words of which every text with marks contains at least one; a quick test, since nearly all texts have none."""
    words = {max(re.findall(r"\w+", mark), key=len) for marks in table() for mark in (marks.open, marks.close)}
    return tuple(sorted(word for word in words if not any(other in word for other in words - {word})))


def that_may_be_in(text: str) -> list[Marks]:
    """The families with a mark in the text, in the order of the table."""
    if not any(sign in text for sign in _signs()):
        return []
    return [marks for marks in table() if any(token in text for token in marks.tokens)]


def _marks(row: dict[str, Any]) -> Marks:
    opening, close = row["open"], row["close"]
    return Marks(
        name=row["name"],
        open=opening,
        close=close,
        closing=row.get("closing", f"\n{close}\n\n"),
        at_once=row.get("at_once", f"\n\n{close}"),
        without=row.get("without"),
        tokens=tuple(row.get("tokens", (opening, close))),
        opens=re.compile(row.get("opens", re.escape(opening))),
        closes=re.compile(row.get("closes", re.escape(close))),
        **{key: re.compile(row[key]) if key in row else _NOTHING for key in ("seam", "begins", "ends")},
        stray=row.get("stray", True),
    )


def opened_by(rendered: str) -> Marks | None:
    """The family whose opening mark ends a rendered prompt; None if the prompt doesn't end inside a thought."""
    end = rendered.rstrip()
    return next((marks for marks in table() if marks.is_written and end.endswith(marks.open.rstrip())), None)


def closed_by(rendered: str) -> Marks | None:
    """The family whose closing mark ends a rendered prompt; None if the prompt doesn't end after a thought."""
    end = rendered.rstrip()
    return next((marks for marks in table() if marks.is_written and end.endswith(marks.close)), None)


def written_in(text: str) -> Marks | None:
    """The first family whose opening and closing marks are both in a text (a chat template)."""
    return next((marks for marks in table() if marks.is_written and marks.open.rstrip() in text and marks.close in text), None)


def without_thought(template: str, rendered: Callable[[str], str]) -> str | None:
    """A chat template whose prompts end after an empty thought, where the answer begins; None if the template has no thought to skip.

    The template's own switch is set (``enable_thinking``, as Qwen3 calls it). If the prompt still opens a thought, it is closed; if the
    family has marks that begin an answer without a thought, they are added. ``rendered`` renders a prompt with a given template.
    """
    switched = "{%- set enable_thinking = false -%}" + template
    end = rendered(switched)
    if closed_by(end):
        return switched
    opened, known = opened_by(end), written_in(template)
    more = opened.closing if opened else known.without if known else None
    return None if more is None else f"{switched}{{%- if add_generation_prompt %}}{{{{ {more!r} }}}}{{% endif -%}}"
