"""The formats in which ``edit`` can write, and how ``--as`` names one of them. What each does is in ``checkpoint/formats/table.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Offered:
    """A format on offer. ``says``: what it is, for --help. ``types``: what may follow its name after a colon."""

    says: str
    types: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChosenFormat:
    """The format that ``--as NAME[:TYPE]`` names; without a type the format takes its own default."""

    name: str
    type: str | None = None


OUTPUT_FORMATS: Mapping[str, Offered] = {
    "checkpoint": Offered("a whole checkpoint, with the proof of the edit (abliteration.json)"),
    "adapter": Offered("a LoRA adapter (PEFT)"),
}


def chosen_format(given: str, offered: Mapping[str, Offered] = OUTPUT_FORMATS) -> ChosenFormat:
    """The format that ``given`` names. Raises PydanticCustomError, which names the known ones, if it is none of those on offer."""
    name, colon, kind = given.partition(":")
    if name not in offered:
        raise PydanticCustomError("format", "not one of {known}", {"known": ", ".join(_names(offered))})
    types = offered[name].types
    if not colon:
        return ChosenFormat(name)
    if not types:
        raise PydanticCustomError("format", "{name} has no types: leave out the colon and what follows it", {"name": name})
    if kind not in types:
        raise PydanticCustomError("format", "not a type of {name}, whose types are {known}", {"name": name, "known": ", ".join(types)})
    return ChosenFormat(name, kind)


def described(offered: Mapping[str, Offered] = OUTPUT_FORMATS) -> str:
    """The formats and what they are, for --help."""
    return "; ".join(f"{name}: {each.says}" for name, each in zip(_names(offered), offered.values(), strict=True))


def _names(offered: Mapping[str, Offered]) -> list[str]:
    return [f"{name}[:TYPE]" if each.types else name for name, each in offered.items()]
