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

    sensitive: Rate = Field(description="Withheld of the sensitive prompts.")
    control: Rate = Field(description="Withheld of their controls.")
    sensitive_only: Count = Field(description="Pairs of which only the sensitive prompt is withheld.")
    control_only: Count = Field(description="Pairs of which only the control is withheld.")
    mcnemar_p: Share = Field(description="McNemar's exact test of the two counts.")
    difference: Number = Field(description="Difference of the two rates of withheld.")
    ci95: Interval | None = Field(description="Interval of the difference, with whole topics resampled.")
    clusters: Count = Field(description="How many clusters were resampled.")
    unit: Unit = Field(description="What a cluster is.")
    warning: str | None = Field(description="Says so where the clusters are few; else null.")


class Contrasts(Record):
    """Both models on the same pairs."""

    n_pairs: Count = Field(description="Number of pairs.")
    base: Contrast
    edited: Contrast | None = Field(description="Null if nothing was edited.")


class AgainstControl(Record):
    """Two sets whose prompts name each other as pair."""

    set: str = Field(description="The sensitive set.")
    control: str = Field(description="The set of its controls.")
    n_pairs: Count = Field(description="Number of pairs.")
    base: Contrast
    edited: Contrast | None = Field(description="Null if nothing was edited.")
    by_lang: May[Mapping[str, Contrasts]] = Field(
        default=None, description="The same for the pairs of each language, if there are several languages."
    )


def side_of(entry: Contrasts | AgainstControl, side: Side) -> Contrast | None:
    """The figures of one model; None if it was not asked."""
    return entry.base if side == "base" else entry.edited
