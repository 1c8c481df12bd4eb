"""Which prompts of a set form a cluster: prompts of one topic, or of one category if the set has no topics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abliterate.measures.pairs import Pairs
from abliterate.measures.parts.paired import Clusters, Unit
from abliterate.replies.transcripts import Transcript


@dataclass(frozen=True)
class Clustering:
    """The name of each prompt's cluster, and what a cluster is (``unit``). A prompt without one is its own cluster."""

    unit: Unit
    names: tuple[str, ...]

    @classmethod
    def of(cls, transcripts: Sequence[Transcript]) -> Clustering:
        """Topics take precedence over categories: the same question in two languages or in other words has one topic."""
        unit: Unit = "topic" if any(t.topic for t in transcripts) else "category" if any(t.category for t in transcripts) else "prompt"
        return cls(unit, tuple(_name(t, unit) for t in transcripts))

    @property
    def count(self) -> int:
        return len(set(self.names))

    @property
    def clustered(self) -> bool:
        """Whether any cluster has more than one prompt."""
        return self.count < len(self.names)

    def pairs(self, before: Sequence[bool], after: Sequence[bool]) -> Pairs:
        """Paired outcomes before and after, by cluster."""
        return Pairs.of(before, after, self.names, self.unit)

    def described(self, unmoved_bound: float | None = None, least_p: float | None = None) -> Clusters | None:
        """The ``clusters`` entry of a test, with the test's own figure; None if every cluster is a single prompt."""
        if self.unit == "prompt" or not self.clustered:
            return None
        return Clusters(unit=self.unit, count=self.count, unmoved_bound=unmoved_bound, least_p=least_p)


def _name(transcript: Transcript, unit: Unit) -> str:
    group = {"topic": transcript.topic, "category": transcript.category, "prompt": None}[unit]
    return f"{unit} {group}" if group else f"prompt {transcript.id}"
