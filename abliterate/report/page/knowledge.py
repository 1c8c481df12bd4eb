"""Elicitation on the page: AUCs by set, language and context, and what they say of each topic with withheld replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abliterate.measures.parts.elicitation import Auc, KnownTopic, WithheldAuc
from abliterate.report.tree.report import Report


@dataclass(frozen=True)
class KnownRow:
    """One model on the prompts of a set, or of one of its languages: an AUC in each context, and in the headline context for withheld and
    other prompts; None where there are none."""

    name: str
    model: str
    control: bool
    contexts: Sequence[Auc]
    withheld: WithheldAuc | None
    answered: Auc | None


@dataclass(frozen=True)
class TopicRow:
    """A topic with withheld replies."""

    set: str
    topic: str
    found: KnownTopic

    @property
    def withheld(self) -> WithheldAuc:
        assert self.found.withheld is not None
        return self.found.withheld


@dataclass(frozen=True)
class Knowledge:
    """The tables of the section."""

    contexts: Sequence[str]
    rows: Sequence[KnownRow]
    topics: Sequence[TopicRow]


def knowledge(report: Report) -> Knowledge | None:
    """The tables; None without --elicit."""
    found = report.elicitation
    if found is None:
        return None
    rows = []
    for name, entry in found.sets.items():
        parts = [(name, entry), *((f"{name}, {lang}", part) for lang, part in entry.by_lang.items() if len(entry.by_lang) > 1)]
        for called, part in parts:
            for side, known in (("base", part.base), ("edited", part.edited)):
                if known is not None:
                    aucs = list(known.contexts.values())
                    rows.append(KnownRow(called, side, entry.control, aucs, known.withheld, known.answered))
    hidden = ((name, topic, each) for name, entry in found.sets.items() for topic, each in entry.topics.items() if each.withheld)
    topics = [TopicRow(*each) for each in hidden]
    contexts = next((list(entry.base.contexts) for entry in found.sets.values()), [])
    return Knowledge(contexts, rows, topics)
