"""What a base's licence requires of the derived model: words to display, how its name begins, a notice, a copy of its text.

The licences are data (``licences.toml``); for a licence that is not there, only the name is known.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from abliterate.checkpoint.records import Licence

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Asked:
    """Words that a licence requires, and the clause."""

    text: str
    clause: str


@dataclass(frozen=True)
class Terms:
    """A known licence; the fields are explained in licences.toml."""

    id: str
    title: str
    link: str
    also: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    copy: str | None = None
    display: Asked | None = None
    begins: Asked | None = None
    notice: Asked | None = None
    passed_on: Asked | None = None
    use: str | None = None

    def covers(self, names: Iterable[str]) -> bool:
        """Whether the names of a model and its bases contain a model of this licence."""
        return any(re.search(pattern, name.lower()) for pattern in self.models for name in names)


@cache
def known() -> tuple[Terms, ...]:
    """All licences in the table."""
    table = tomllib.loads(files("abliterate.report").joinpath("licences.toml").read_text(encoding="utf-8"))
    return tuple(Terms(**{key: _value(value) for key, value in entry.items()}) for entry in table["licence"])


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return Asked(**value)
    return tuple(value) if isinstance(value, list) else value


def names_of(licence: Licence | None) -> list[str]:
    """The licences that a base's card names: ids, or the card's own name if the id is ``other``; empty if it names none."""
    if licence is None:
        return []
    named = [licence.name] if licence.name and set(licence.ids) <= {"other"} else []
    return [*named, *(name for name in licence.ids if name != UNKNOWN and not (named and name == "other"))]


def terms_of(licence: Licence | None, base: str) -> list[Terms]:
    """The known licences that apply to the derived model: those that the base's card names, and those of the models it was made from.

    ``base`` is the base model's name.
    """
    stated = {re.sub(r"[\s_]+", "-", name.lower()) for name in names_of(licence)}
    chain = [base, *(licence.bases if licence else ())]
    return [terms for terms in known() if stated & {terms.id, *terms.also} or terms.covers(chain)]


def refusals(terms: Sequence[Terms], name: str, licence_files: Sequence[str]) -> Iterator[str]:
    """Reasons not to publish a model as ``name`` (without its owner) with ``licence_files``, each with the clause."""
    for asked in terms:
        if asked.begins is not None and not _plain(name).startswith(_plain(asked.begins.text)):
            wanted = asked.begins.text.replace(" ", "-")
            yield (
                f"the {asked.title} ({asked.begins.clause}) requires that a derived model's name begins with “{asked.begins.text}”, "
                f"but {name!r} does not; call it {wanted}-..."
            )
        if asked.copy is not None and not any(file.lower().startswith(("licen", "copying")) for file in licence_files):
            yield (
                f"the {asked.title} ({asked.copy}) requires a copy of its text beside the weights, but the base's folder has none; "
                f"save the text ({asked.link}) as LICENSE in the checkpoint"
            )


def _plain(words: str) -> str:
    """Lower case without spaces, hyphens and underscores: ``Llama 3``, ``Llama-3`` and ``Llama3`` are the same."""
    return re.sub(r"[\s_-]", "", words.lower())


def notices(terms: Sequence[Terms]) -> list[str]:
    """The lines that a NOTICE file must hold."""
    return [asked.notice.text for asked in terms if asked.notice is not None]


def displayed(terms: Sequence[Terms]) -> list[str]:
    """The words that the card must display."""
    return [asked.display.text for asked in terms if asked.display is not None]
