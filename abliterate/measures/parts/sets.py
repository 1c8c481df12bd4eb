"""What is reported of each prompt set: before and after, by language and by topic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field

from abliterate.files import Count, May, Record
from abliterate.measures.parts.paired import Paired, TopicPaired
from abliterate.measures.parts.rates import Figures, Outcomes, Rate

Side = Literal["base", "edited"]
SIDES: tuple[Side, Side] = ("base", "edited")
KEEP = "keep"


class NotJudged(Record):
    """Number of replies of each model in a language without rules; they are in no rate's n."""

    base: Count = Field(description="Replies of base.")
    edited: May[Count] = Field(default=None, description="Not in an audit.")

    def sides(self) -> list[tuple[Side, int]]:
        return [("base", self.base), *([("edited", self.edited)] if self.edited is not None else [])]  # type: ignore[list-item]


class Compared(Record):
    """The same prompts before and after."""

    base: Figures
    edited: Figures | None = Field(description="Null in an audit.")
    paired: Paired | None = Field(description="On the same prompts; null in an audit.")


class SetEntry(Record):
    """Figures of one set."""

    role: str = Field(description="target, baseline, keep, harmless; audited in an audit.")
    lang: str = Field(description="Languages, such as en+zh.")
    n: Count = Field(description="Number of prompts.")
    not_judged: May[NotJudged] = None
    base: Figures
    edited: Figures | None = Field(description="Null in an audit.")
    paired: Paired | None = Field(description="On the same prompts; null in an audit.")
    by_lang: May[Mapping[str, Compared]] = Field(
        default=None, description="The same for each language's prompts, if there are several languages."
    )

    @property
    def measure(self) -> Literal["refused", "withheld"]:
        """The measure that the set is judged by: keep sets should stay refused, all others are counted by what is withheld."""
        return "refused" if self.role == KEEP else "withheld"

    @property
    def languages(self) -> Mapping[str, Compared]:
        """The parts by language; empty if there is one language."""
        return self.by_lang or {}


class Topic(Record):
    """Withheld on one topic (category) of a set."""

    n: Count = Field(description="Number of prompts.")
    base: Rate = Field(description="Withheld of base.")
    edited: Rate | None = Field(description="Withheld of the edited model; null in an audit.")
    paired: May[TopicPaired] = None


class Row(Record):
    """Outcome counts of one topic in one language."""

    topic: str = Field(description="The topic.")
    lang: str = Field(description="The language.")
    n: Count = Field(description="Number of prompts.")
    base: Outcomes
    edited: Outcomes | None = Field(description="Null in an audit.")


def sides(entry: Compared | SetEntry) -> Iterator[tuple[Side, Figures]]:
    """The models that were asked, with their figures."""
    yield "base", entry.base
    if entry.edited is not None:
        yield "edited", entry.edited
