"""A prompt, and a named, immutable set of prompts."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import Field

from abliterate.files import Count, Record
from abliterate.prompts.languages.record import DEFAULT

T = TypeVar("T")
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    ``pair``: the id of its twin in another set. ``facts``: short strings; an answer that contains one of them has substance.
    ``official``: the official position on a political question, in one sentence.
    """

    id: str
    text: str
    lang: str = DEFAULT
    category: str = ""
    split: Split | None = None
    pair: str | None = None
    topic: str | None = None
    facts: tuple[str, ...] = ()
    official: str | None = None


class PromptsUsed(Record):
    """A prompt set in a run's record: its role, and the hash and number of its prompts."""

    role: str = Field(description="Role of the set.")
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = Field(description="Hash of every field of every prompt, in order.")
    n: Count = Field(description="Number of prompts.")


@dataclass(frozen=True)
class PromptSet:
    """A named set of prompts, in a fixed order."""

    name: str
    prompts: tuple[Prompt, ...]
    own_splits: bool = True  # False if the splits were assigned by the program, not by the set

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def used_as(self, role: str) -> PromptsUsed:
        """The set's entry in a run's record."""
        return PromptsUsed(role=role, sha256=self.sha256, n=len(self))

    def of(self, split: Split, limit: int | None = None) -> PromptSet:
        """The prompts of one split in file order; with ``limit`` at most that many, evenly spread."""
        chosen = [p for p in self.prompts if p.split == split]
        return PromptSet(self.name, tuple(evenly(chosen, limit)), self.own_splits)

    def first(self, limit: int | None = None) -> PromptSet:
        """The first ``limit`` prompts (all if None), of any split."""
        return PromptSet(self.name, self.prompts[:limit], self.own_splits)

    @property
    def sha256(self) -> str:
        """Hash of every field of every prompt, in order."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(json.dumps(asdict(prompt), ensure_ascii=False, sort_keys=True).encode("utf-8", "replace"))
        return digest.hexdigest()


def evenly(items: Sequence[T], limit: int | None) -> list[T]:
    """At most ``limit`` of the items, evenly spread, in order."""
    count = len(items)
    return list(items) if limit is None or count <= limit else [items[i * count // limit] for i in range(limit)]


def normalised(text: str) -> str:
    """Text normalised for comparing prompts: NFKC, case-folded, one space between words."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
