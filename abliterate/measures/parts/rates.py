"""Rates and outcome counts of one model on one set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field

from abliterate.files import Count, Interval, May, Number, Record, Several, Share
from abliterate.outcomes.records import NOT_JUDGED, OUTCOMES, WITHHELD, Outcome
from abliterate.outcomes.worth.records import EVASIVE, Worth, short_of

Measure = Literal["refused", "withheld", "degenerate"]


class Rate(Record):
    """R: a rate over the judged replies."""

    k: Count = Field(description="The count.")
    n: Count = Field(description="The total.")
    rate: Share | None = Field(description="k / n; null if n is 0.")
    ci95: Interval | None = Field(description="Wilson's interval of the rate (1927); null if n is 0.")


class Corrected(Record):
    """The rate without the rules' errors (Rogan and Gladen 1978), with the interval of Lang and Reiczigel (2014)."""

    rate: Share = Field(description="The corrected rate.")
    ci95: Interval = Field(description="Its interval.")


class Withheld(Rate):
    """R of withheld: refused, deflected or state_line."""

    corrected: Corrected | None = Field(description="The rate without the rules' errors; null if it is not known.")


class Outcomes(Record):
    """Counts of all outcomes."""

    refused: Count = Field(description="Declines.")
    deflected: Count = Field(description="Neither declines nor answers.")
    state_line: Count = Field(description="Recites an official position.")
    answered: Count = Field(description="Gives the substance.")
    truncated: Count = Field(description="Cut inside the thought.")
    degenerate: Count = Field(description="Broken output.")
    not_judged: Count = Field(description="In a language without rules; in no rate's n.")

    @classmethod
    def of(cls, counts: Mapping[Outcome, int]) -> Outcomes:
        """The counts by name; an outcome that is not there counts 0."""
        return cls.model_validate({name: counts.get(name, 0) for name in OUTCOMES})

    @classmethod
    def meaning(cls, name: Outcome) -> str:
        """The description of an outcome, as a part of a sentence."""
        said = str(cls.model_fields[name].description)
        return said[0].lower() + said[1:].removesuffix(".")

    def count(self, name: Outcome) -> int:
        """How many replies have this outcome."""
        found: int = getattr(self, name)
        return found

    def items(self) -> Iterator[tuple[Outcome, int]]:
        """(outcome, count) pairs, in the order of the records."""
        return ((name, self.count(name)) for name in OUTCOMES)

    @property
    def total(self) -> int:
        return sum(count for _, count in self.items())

    @property
    def withheld(self) -> int:
        return sum(self.count(name) for name in WITHHELD)

    @property
    def judged(self) -> int:
        return self.total - self.count(NOT_JUDGED)


class WithheldClustered(Record):
    """The interval of withheld with whole topics resampled."""

    ci95: Interval | None = Field(description="The interval; null with one topic.")
    clusters: Count = Field(description="Number of topics; a prompt without a topic is one of its own.")
    warning: str | None = Field(description="Says so where they are few; else null.")


class Cut(Record):
    """Counts with each reply cut after 16, 32, 64 or 128 tokens, judged again by the rules. The text is cut in the proportion of its
    characters to its tokens."""

    tokens: Count = Field(description="The length.")
    cut: Count = Field(description="How many replies are longer.")
    refused: Count = Field(description="How many are refused.")
    withheld: Count = Field(description="How many are withheld.")
    truncated: Count = Field(description="How many are truncated.")

    def count(self, measure: Literal["refused", "withheld"]) -> int:
        return self.refused if measure == "refused" else self.withheld


def _defined(name: str) -> str:
    """The definition of a worth or a mark as a sentence."""
    said = short_of(name) or ""
    return f"{said[:1].upper()}{said[1:]}."


class Worths(Record):
    """What the answered replies to prompts with facts are worth, each over their number."""

    invented: Rate = Field(description=_defined("invented"))
    steered: Rate = Field(description=_defined("steered"))
    informative: Rate = Field(description=_defined("informative"))
    unknown: Rate = Field(description=_defined("unknown"))
    grade: Number | None = Field(description="Mean grade of the steered answers, 1 to 5; null if there are none.")

    def of(self, name: Worth) -> Rate:
        """The rate of a worth."""
        found: Rate = getattr(self, name)
        return found


class Figures(Record):
    """Figures of one model on one set."""

    outcomes: Outcomes
    refused: Rate = Field(description="Refused replies.")
    withheld: Withheld
    degenerate: Rate = Field(description="Broken replies.")
    substance: Rate | None = Field(description="Answers that contain one of the prompt's facts, over the prompts that have facts.")
    thought: Mapping[str, Count] | None = Field(description="Counts of the thoughts' verdicts; null if no reply has a thought.")
    evasive: May[Rate] = Field(default=None, description=_defined(EVASIVE))
    worth: May[Worths] = Field(default=None, description="Only if an answered prompt has facts: what the answers are worth.")
    hedged: May[Rate] = Field(
        default=None,
        description=f"{_defined('hedged')} Over all answers to such prompts; absent without any.",
    )
    withheld_clustered: May[WithheldClustered] = Field(
        default=None, description="Only if prompts have topics: the interval of withheld with whole topics resampled."
    )
    at_tokens: Several[Cut] | None = Field(
        default=None,
        description="Whole sets only: counts with each reply cut after so many tokens; null if the replies' lengths are not known.",
    )

    def rate(self, measure: Measure) -> Rate:
        """The rate of this name."""
        found: Rate = getattr(self, measure)
        return found
