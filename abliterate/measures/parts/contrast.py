"""Sensitive sets beside their controls."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from abliterate.files import Count, Interval, May, Number, Record, Share
from abliterate.measures.parts.paired import Unit
from abliterate.measures.parts.rates import Rate
from abliterate.measures.parts.sets import Side


class Contrast(Record):
    """One model on pairs of a sensitive prompt and its control."""

    sensitive: Rate
    control: Rate
    sensitive_only: Count
    control_only: Count
    mcnemar_p: Share
    difference: Number = Field(description="Difference of the two rates of withheld.")
    ci95: Interval | None = Field(description="Interval of the difference, with whole topics resampled.")
    clusters: Count
    unit: Unit = Field(description="What a cluster is.")
    warning: str | None


class Contrasts(Record):
    """Both models on the same pairs."""

    n_pairs: Count
    base: Contrast
    edited: Contrast | None


class AgainstControl(Record):
    """Two sets whose prompts name each other as pair."""

    set: str
    control: str
    n_pairs: Count
    base: Contrast
    edited: Contrast | None
    by_lang: May[Mapping[str, Contrasts]] = None


def side_of(entry: Contrasts | AgainstControl, side: Side) -> Contrast | None:
    """The figures of one model; None if it was not asked."""
    return entry.base if side == "base" else entry.edited
