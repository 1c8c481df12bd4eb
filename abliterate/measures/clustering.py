"""Which prompts of a set belong together: those of a topic, and where a set has no topics those of a category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from abliterate.measures.pairs import Pairs, Unit
from abliterate.replies.transcripts import Transcript


@dataclass(frozen=True)
class Clustering:
    """The name of each prompt's cluster, and what a cluster is; a prompt that belongs to none is one of its own."""

    unit: Unit
    names: tuple[str, ...]

    @classmethod
    def of(cls, transcripts: Sequence[Transcript]) -> Clustering:
        """Topics go before categories: a question in two languages, or put in other words, is of one topic."""
        unit: Unit = "topic" if any(t.topic for t in transcripts) else "category" if any(t.category for t in transcripts) else "prompt"
        return cls(unit, tuple(_name(t, unit) for t in transcripts))

    @property
    def count(self) -> int:
        return len(set(self.names))

    @property
    def clustered(self) -> bool:
        """Whether any prompts belong together."""
        return self.count < len(self.names)

    def pairs(self, before: Sequence[bool], after: Sequence[bool]) -> Pairs:
        """An outcome of each prompt before and after, by cluster."""
        return Pairs.of(before, after, self.names, self.unit)

    def described(self, **figures: float) -> dict[str, Any]:
        """What a test says of them under ``clusters``, with figures of its own; nothing where each prompt is for itself."""
        return {"clusters": {"unit": self.unit, "count": self.count, **figures}} if self.clustered else {}


def _name(transcript: Transcript, unit: Unit) -> str:
    group = {"topic": transcript.topic, "category": transcript.category, "prompt": None}[unit]
    return f"{unit} {group}" if group else f"prompt {transcript.id}"
