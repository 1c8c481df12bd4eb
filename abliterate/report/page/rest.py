"""What a part of a bar is called: the rest of an outcome, of which other parts are named apart, is not called like the whole."""

from __future__ import annotations

from collections.abc import Sequence

from abliterate.report.bars.bars import Part
from abliterate.report.bars.kinds import Kind

REST = "other"


def is_rest(kind: Kind, kinds: Sequence[Kind]) -> bool:
    """Whether a kind stands for what is left of its outcome beside other ``kinds`` of it."""
    return kind.name == kind.of and any(each.of == kind.of and each != kind for each in kinds)


def named(kind: Kind, kinds: Sequence[Kind]) -> str:
    """The name of a kind among ``kinds``."""
    return f"{REST} {kind.title}" if is_rest(kind, kinds) else kind.title


def in_bar(part: Part, kinds: Sequence[Kind]) -> str:
    """The name that stands in a part of a bar: its name among ``kinds``, or the short one of a rest if only that has room."""
    name = named(part.kind, kinds)
    return REST if is_rest(part.kind, kinds) and not part.fits(name) else name
