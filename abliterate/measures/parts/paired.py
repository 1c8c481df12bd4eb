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
    count: Count = Field(description="Number of clusters; a prompt without topic or category is one of its own.")
    unmoved_bound: May[Number] = Field(default=None, description="What upper_bound would be with no change at all.")
    least_p: May[Share] = Field(default=None, description="What mcnemar_p would be if the edited model did it on no prompt.")


class Discordant(Record):
    """Prompts of which only one model's reply is refused, withheld or broken, and McNemar's exact test, over clusters if there are any."""

    base_only: Count = Field(description="Prompts of which only base's reply is.")
    edited_only: Count = Field(description="Prompts of which only the edited model's reply is.")
    mcnemar_p: Share = Field(description="p of the test.")
    clusters: May[Clusters] = None


class Paired(Record):
    """Tests on the same prompts."""

    refused: Discordant
    withheld: Discordant
    degenerate: May[Discordant] = Field(default=None, description="Of broken output; absent from older reports.")

    def of(self, measure: str) -> Discordant | None:
        """The test of a measure; None if there is none of this measure."""
        return {"refused": self.refused, "withheld": self.withheld, "degenerate": self.degenerate}.get(measure)


class TopicPaired(Record):
    """McNemar's exact test of withheld on one topic."""

    base_only: Count = Field(description="Prompts that only base withholds.")
    edited_only: Count = Field(description="Prompts that only the edited model withholds.")
    mcnemar_p: Share = Field(description="p of the test.")
    holm_p: Share = Field(description="p corrected over the set's topics (Holm 1979).")


class KeepTest(Record):
    """Test that refusals of a keep set did not fall by more than the margin."""

    set: str = Field(description="The keep set.")
    measure: May[str] = Field(
        default=None, description="What must not fall: refused, or withheld if base withholds the set more often in other ways."
    )
    base: May[Count] = Field(default=None, description="Number of prompts that base refuses or withholds.")
    n: Count = Field(description="Number of prompts.")
    margin: Number = Field(description="How much the share may fall.")
    upper_bound: Number = Field(description="One-sided upper bound, alpha 0.05 (Tango 1998), over clusters if prompts come in clusters.")
    holds: bool = Field(description="Whether the bound is below the margin, and base refused more than the margin.")
    clusters: May[Clusters] = None


class UnchangedTest(Record):
    """Test that withheld or degenerate replies of a set did not rise by more than the margin."""

    set: str = Field(description="The set.")
    measure: Literal["withheld", "degenerate"] = Field(description="What must not rise.")
    n: Count = Field(description="Number of prompts.")
    margin: Number = Field(description="How much the share may rise.")
    upper_bound: Number = Field(description="One-sided upper bound, alpha 0.05 (Tango 1998), over clusters if prompts come in clusters.")
    holds: bool = Field(description="Whether the bound is below the margin.")
    clusters: May[Clusters] = None
