"""reproduction.json: a run that was repeated, and its figures beside those of the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, Strict

from abliterate.files import Count, Interval, Record, Several
from abliterate.runs.document import Kind

SCHEMA: Final = "abliterate/reproduction/1"
Verdict = Literal["identical", "within", "different"]
VERDICTS: tuple[Verdict, ...] = ("identical", "within", "different")
Change = Annotated[tuple[Any, Any], Strict(False)]  # a value before and now; None if missing


class Totals(Record):
    """The number of figures with each verdict."""

    identical: Count
    within: Count
    different: Count

    def of(self, verdict: Verdict) -> int:
        found: int = getattr(self, verdict)
        return found


class _SetAndMeasure(Record):
    set: str
    measure: str


class MeasureTotals(Totals, _SetAndMeasure):  # the keys of the last base are written first
    """The totals of a set and measure."""


class FigureRow(Record):
    """One figure before and now. ``of``: the total of a count."""

    path: Several[str]
    before: Any
    ci95: Interval | None
    of: int | None
    now: Any
    verdict: Verdict


class Differences(Record):
    """What differs from the first run, by kind and key."""

    settings: Mapping[str, Change]
    versions: Mapping[str, Change]
    resolved: Mapping[str, Change]
    model_hashes: Mapping[str, Change]

    def kinds(self) -> list[tuple[str, Mapping[str, Change]]]:
        """The kinds of differences, in words, with their changes."""
        return [
            ("settings", self.settings),
            ("versions", self.versions),
            ("resolved", self.resolved),
            ("model hashes", self.model_hashes),
        ]


class Reproduction(Record):
    """The content of reproduction.json."""

    format: Literal["abliterate/reproduction/1"] = Field(validation_alias="schema", serialization_alias="schema")
    of: str
    kind: Kind
    totals: Totals
    by_measure: Several[MeasureTotals]
    differences: Differences
    figures: Several[FigureRow]
    not_compared: Several[str]
