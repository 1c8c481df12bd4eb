"""Thoughts beside answers."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from abliterate.files import Count, Record
from abliterate.measures.parts.rates import Outcomes


class Answers(Record):
    """Answers that withhold, and others."""

    withheld: Count
    not_withheld: Count


class Crossed(Record):
    """Thoughts and answers of one model on one set."""

    counts: Mapping[str, Outcomes] = Field(description="Outcomes by the thought's verdict (none: no thought).")
    shut: Answers
    open: Answers


class ThoughtByAnswer(Record):
    """Thoughts and answers of both models on one set."""

    base: Crossed
    edited: Crossed | None
