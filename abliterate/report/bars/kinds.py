"""The kinds of replies that a bar tells apart: outcomes, with what is evasive or hedged of them, and answers by their worth."""

from __future__ import annotations

from dataclasses import dataclass

from abliterate.measures.parts.rates import Figures
from abliterate.outcomes.records import RECORDS, WITHHELD, Look, Outcome
from abliterate.outcomes.worth.records import MARKS, NAMES, WORTHS, Worth

# From left to right; each kind but for the outcomes is taken out of the outcome that it belongs to.
_ORDER = (
    "refused", "deflected", "state_line", "evasive", "informative", "steered", "invented", "unknown", "answered", "hedged", "truncated",
    "degenerate", "not_judged",
)  # fmt: skip
WORTHS_READ: tuple[Worth, ...] = ("informative", "steered", "invented", "unknown")  # in the same order


@dataclass(frozen=True)
class Kind:
    """A kind of replies, part of the outcome ``of``. ``colours``: on a light and on a dark page, drawn as ``look``."""

    name: str
    title: str
    of: Outcome
    colours: tuple[str, str]
    look: Look
    light_text: bool = False

    @property
    def group(self) -> str:
        """What replies of this kind are together with others: withheld, answered, or nothing more."""
        return "withheld" if self.of in WITHHELD else "answered" if self.of == "answered" else ""

    @property
    def place(self) -> int:
        """The place of its group in the legend."""
        return ("withheld", "answered", "").index(self.group)


def _known() -> dict[str, Kind]:
    found = [Kind(each.name, each.title, each.name, each.colours, each.look, each.light_text) for each in RECORDS]
    found += [Kind(each.name, each.title, each.of, each.colours, each.look) for each in MARKS]
    found += [Kind(each.name, each.title, "answered", each.colours, each.look, each.light_text) for each in WORTHS]
    return {kind.name: kind for kind in found}


_KNOWN = _known()
KINDS: tuple[Kind, ...] = tuple(_KNOWN[name] for name in _ORDER)


def counts(figures: Figures) -> dict[Kind, int]:
    """How many replies of each kind one model gave to a set; every reply is of one kind."""
    found: dict[str, int] = {}
    found.update(figures.outcomes.items())
    parts: dict[str, int] = {
        "evasive": figures.evasive.k if figures.evasive else 0,
        "hedged": figures.hedged.k if figures.hedged else 0,
        **({str(name): figures.worth.of(name).k for name in NAMES} if figures.worth else {}),
    }
    for name, k in parts.items():
        found[_KNOWN[name].of] -= k
    found |= parts
    return {kind: found.get(kind.name, 0) for kind in KINDS}
