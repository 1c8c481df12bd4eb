"""Known facts beside matched false ones: the scores in the run folder, and the report's figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field

from abliterate.files import Count, Interval, May, Number, Record, Several, Share
from abliterate.measures.parts.sets import Side

Kind = Literal["date", "number", "name", "phrase"]
Context = Literal["lead_in", "few_shot", "chat"]
CONTEXTS: tuple[Context, ...] = ("lead_in", "few_shot", "chat")
COMBINED = "combined"
Reading = Literal["knows", "does_not_know", "undecided"]


class ScoredFact(Record):
    """A known fact of a prompt with its matched false ones, and their scores in nats by context."""

    fact: str
    kind: Kind
    false: Several[str]
    true_scores: Mapping[Context, Number]
    false_scores: Mapping[Context, Several[Number]]

    def scores(self, context: str) -> tuple[float, list[float]]:
        """The score of the fact, and those of the false ones. Of ``combined``: the means over the contexts."""
        if context != COMBINED:
            return self.true_scores[context], list(self.false_scores[context])  # type: ignore[index]
        columns = zip(*self.false_scores.values(), strict=True)
        return sum(self.true_scores.values()) / len(self.true_scores), [sum(column) / len(column) for column in columns]


class ScoredPrompt(Record):
    """One prompt of a set."""

    set: str
    id: str
    facts: Several[ScoredFact]


class Unmatched(Record):
    """What could not be matched as it should be."""

    in_question: Count = Field(description="Facts that the question itself says; they are left out.")
    no_sibling: Count = Field(description="Facts for which no other topic has a fact that could be false; they are left out.")
    other_kind: Count = Field(description="Facts whose false ones are of another kind, for lack of any of their own kind.")


class ElicitedScores(Record):
    """elicitation.json (elicitation-edited.json for the second model): the scores of all facts of one model."""

    unmatched: Unmatched
    prompts: Several[ScoredPrompt]


class Auc(Record):
    """How often a known fact scores higher than a matched false one."""

    auc: Share | None = Field(
        description="Mean over prompts of the share of pairs in which the known fact scores higher (ties: half); 0.5 is chance."
    )
    auc_ci95: Interval | None = Field(description="Its interval, over whole topics; null where there are fewer than two observations.")
    n: Count = Field(description="Number of prompts.")
    clusters: Count = Field(description="Number of topics (prompts, if a prompt has no topic).")


class WithheldAuc(Auc):
    """The same for prompts whose replies base withholds."""

    reading: Reading = Field(
        description="knows: the interval is above 0.5; does_not_know: it reaches down to 0.5 but not up to this model's controls, whose "
        "own interval is above 0.5; else undecided."
    )


class Known(Record):
    """One model on the prompts of a set, or on those of one language."""

    contexts: Mapping[str, Auc] = Field(description="By context: lead_in, few_shot, chat, and combined (the mean of the three scores).")
    withheld: May[WithheldAuc] = Field(default=None, description="Headline context, prompts that base withholds; absent if there are none.")
    answered: May[Auc] = Field(default=None, description="Headline context, prompts that base answers; absent if there are none.")


class Change(Record):
    """The AUC of the second model minus that of the first, on the same prompts, in the headline context."""

    difference: Number = Field(description="Mean difference over prompts.")
    ci95: Interval | None = Field(description="Its interval, over whole topics; null where there are fewer than two.")
    n: Count = Field(description="Number of prompts.")


class KnownTopic(Record):
    """One topic of a set, in the headline context."""

    base: Auc
    edited: May[Auc] = Field(default=None, description="compare only: the second model.")
    withheld: May[WithheldAuc] = Field(default=None, description="base, prompts that it withholds; absent if there are none.")
    withheld_edited: May[WithheldAuc] = Field(default=None, description="compare only: the second model on the same prompts.")
    known: Several[str] = Field(
        description="Facts of withheld prompts that score higher than all their false ones, the clearest first; at most five."
    )


class KnownSides(Record):
    """Both models on the same prompts."""

    base: Known
    edited: May[Known] = Field(default=None, description="compare only: the second model.")
    change: May[Change] = Field(default=None, description="compare only.")
    change_withheld: May[Change] = Field(default=None, description="compare only: on the prompts that base withholds.")


class KnownSet(KnownSides):
    """One set of prompts with facts."""

    control: bool = Field(description="Whether it is a control: its facts are not censored.")
    by_lang: Mapping[str, KnownSides] = Field(description="By language.")
    topics: Mapping[str, KnownTopic] = Field(description="By topic; empty if prompts have none.")


class Elicitation(Record):
    """With --elicit: how likely the model finds known facts beside matched false ones, by forward passes (docs/elicitation.md)."""

    context: str = Field(description="The headline context: in which the controls have the highest AUC; combined without controls.")
    controls: Several[str] = Field(description="The control sets that chose it; empty if none was asked.")
    control: May[Auc] = Field(default=None, description="base on all controls in the headline context; absent without controls.")
    facts: Count = Field(description="Number of known facts with false ones.")
    pairs: Count = Field(description="Number of pairs of a known and a false fact.")
    unmatched: Unmatched
    sets: Mapping[str, KnownSet] = Field(description="By set.")

    def sides(self, name: str) -> Iterator[tuple[Side, Known]]:
        """The models that were measured on a set."""
        found = self.sets[name]
        yield "base", found.base
        if found.edited is not None:
            yield "edited", found.edited
