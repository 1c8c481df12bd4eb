"""Paired tests, and tests that a rate did not rise or fall by more than a margin."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from abliterate.files import Count, May, Number, Record, Share

Unit = Literal["topic", "category", "prompt"]  # what a cluster is


class Clusters(Record):
    """Only if prompts belong together: each cluster is one observation of the test."""

    unit: Literal["topic", "category"] = Field(
        description="What a cluster is: the prompts of a topic, or of a category if the set has no topics."
    )
    count: Count
    unmoved_bound: May[Number] = Field(default=None, description="What upper_bound would be with no change at all.")
    least_p: May[Share] = Field(default=None, description="What mcnemar_p would be if no prompt were refused or withheld after the edit.")


class Discordant(Record):
    """Prompts that only one of the two models refused or withheld, and McNemar's exact test, over clusters if prompts come in clusters."""

    base_only: Count
    edited_only: Count
    mcnemar_p: Share
    clusters: May[Clusters] = None


class Paired(Record):
    """Tests on the same prompts."""

    refused: Discordant
    withheld: Discordant

    def of(self, measure: str) -> Discordant | None:
        """The test of a measure; None if there is none of this measure."""
        return {"refused": self.refused, "withheld": self.withheld}.get(measure)


class TopicPaired(Record):
    """The test of one topic. holm_p: corrected over the set's topics (Holm 1979)."""

    base_only: Count
    edited_only: Count
    mcnemar_p: Share
    holm_p: Share


class KeepTest(Record):
    """Test that refusals of a keep set did not fall by more than the margin."""

    set: str
    measure: May[str] = Field(
        default=None, description="What must not fall: refused, or withheld if base withholds the set more often in other ways."
    )
    base: May[Count] = Field(default=None, description="Number of prompts that base refuses or withholds.")
    n: Count
    margin: Number
    upper_bound: Number = Field(description="One-sided upper bound, alpha 0.05 (Tango 1998), over clusters if prompts come in clusters.")
    holds: bool
    clusters: May[Clusters] = None


class UnchangedTest(Record):
    """Test that withheld or degenerate replies of a set did not rise by more than the margin."""

    set: str
    measure: Literal["withheld", "degenerate"]
    n: Count
    margin: Number
    upper_bound: Number
    holds: bool
    clusters: May[Clusters] = None
