"""Of what activations and estimates are: typed keys. Their text stands in files and reports; only reading a file parses it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

from abliterate.prompts import Role

_KEEP = "keep/"
_SCOPED = ", scoped"


@dataclass(frozen=True)
class GroupKey:
    """The prompts of a role; with ``lang`` only those in one language, with ``keep_set`` only those of one keep set."""

    role: Role
    lang: str | None = None
    keep_set: str | None = None

    def __str__(self) -> str:
        """``target``, ``target@en``, ``keep/<set>``."""
        if self.keep_set is not None:
            return _KEEP + self.keep_set
        return self.role if self.lang is None else f"{self.role}@{self.lang}"

    @classmethod
    def read(cls, text: str) -> GroupKey:
        """The key of a text in a file. A keep set may have any name."""
        if text.startswith(_KEEP):
            return cls("keep", keep_set=text.removeprefix(_KEEP))
        role, at, lang = text.partition("@")
        return cls(cast("Role", role), lang if at else None)


TARGET, BASELINE, HARMLESS = GroupKey("target"), GroupKey("baseline"), GroupKey("harmless")


@dataclass(frozen=True)
class EstimateKey:
    """What an estimator makes; ``scoped``: without the keep sets' directions; ``lang``: from the prompts in one language."""

    estimator: str
    scoped: bool = False
    lang: str | None = None

    def __str__(self) -> str:
        """``projected``, ``projected, scoped``, ``projected@en``, ``projected, scoped@en``."""
        return self.estimator + (_SCOPED if self.scoped else "") + ("" if self.lang is None else f"@{self.lang}")

    @classmethod
    def read(cls, text: str) -> EstimateKey:
        """The key of a text in a file."""
        name, at, lang = text.partition("@")
        return cls(name.removesuffix(_SCOPED), name.endswith(_SCOPED), lang if at else None)

    @property
    def of_all_languages(self) -> EstimateKey:
        """The same from the prompts in all languages."""
        return replace(self, lang=None)


def by_language(keys: Iterable[EstimateKey]) -> dict[str, dict[str, str]]:
    """By the name of an estimate, the names of its versions for one language, by language."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        if key.lang is not None:
            found.setdefault(str(key.of_all_languages), {})[key.lang] = str(key)
    return found
