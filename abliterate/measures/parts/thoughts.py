"""Thoughts beside answers."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from abliterate.files import Count, Record
from abliterate.measures.parts.rates import Outcomes


class Answers(Record):
    """Answers that withhold, and others."""

    withheld: Count = Field(description="Answers that withhold.")
    not_withheld: Count = Field(description="All other answers.")


class Crossed(Record):
    """Thoughts and answers of one model on one set."""

    counts: Mapping[str, Outcomes] = Field(description="Outcomes by the thought's verdict (none: no thought).")
    shut: Answers = Field(description="Answers after a thought that is empty or refuses.")
    open: Answers = Field(description="Answers after any other thought.")


class ThoughtByAnswer(Record):
    """Thoughts and answers of both models on one set."""

    base: Crossed
    edited: Crossed | None = Field(description="Null in an audit.")
