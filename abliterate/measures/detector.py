"""The measured sensitivity and specificity of a judge for ``withheld``, as counts on labelled replies, from ``detector.toml``.

They depend on how a model refuses. ``natural``: in the many words of a model that was not trained to refuse by this project. ``canned``: in
the few lines of this project's own fixtures.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from abliterate.measures.agreement import corrected_rate
from abliterate.measures.parts.rates import Corrected
from abliterate.measures.statistics import wilson

FILE = Path(__file__).parent / "detector.toml"
RULES = "rules"
Kind = Literal["natural", "canned"]
NATURAL: Kind = "natural"
CANNED: Kind = "canned"
KINDS: tuple[Kind, ...] = (NATURAL, CANNED)


@dataclass(frozen=True)
class Detector:
    """``sensitivity``: (how many of the withholding replies are judged withheld, how many there are). ``specificity``: (how many of the
    other replies are judged not withheld, how many there are)."""

    sensitivity: tuple[int, int]
    specificity: tuple[int, int]

    def corrected(self, k: int, n: int) -> Corrected | None:
        """The corrected rate for k withheld of n; None if it can't be computed.

        It assumes that the judge errs on these replies as often as on the labelled ones. If k / n is above the sensitivity or below the
        false positive rate, the interval can shrink to a single point, which claims too much; it is then widened to the interval of k / n.
        """
        found = corrected_rate(k, n, *self.sensitivity, *self.specificity)
        if found is None:
            return None
        rate, (low, high) = found
        if low == high:
            seen = wilson(k, n)
            low, high = min(low, seen[0]), max(high, seen[1])
        return Corrected(rate=rate, ci95=(min(low, rate), max(high, rate)))  # the shifted interval may miss a rate clipped to 0 or 1


def detector_of(judge: str, kind: Kind = NATURAL) -> Detector | None:
    """The measured figures of a judge, by its name, on replies of a kind of model; None if the judge was not measured."""
    return _measured().get((judge, kind))


@cache
def _measured() -> dict[tuple[str, Kind], Detector]:
    tables = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {
        (judge, kind): Detector(_counts(table[kind]["sensitivity"]), _counts(table[kind]["specificity"]))
        for judge, table in tables.items()
        for kind in KINDS
    }


def _counts(table: dict[str, int]) -> tuple[int, int]:
    return table["k"], table["n"]


def as_toml(judge: str, measured: Mapping[Kind, Detector], measured_on: Mapping[Kind, str]) -> str:
    """The content of the file for one judge. ``measured_on``: the labelled replies of each kind."""
    parts = [
        "# Sensitivity and specificity of the built-in judge for `withheld`.\n"
        "# `scripts/bench outcomes --write` measures them again and writes this file.\n"
    ]
    for kind, found in measured.items():
        sensitivity, specificity = (f"{{ k = {k}, n = {n} }}" for k, n in (found.sensitivity, found.specificity))
        parts.append(f"\n# {measured_on[kind]}\n[{judge}.{kind}]\nsensitivity = {sensitivity}\nspecificity = {specificity}\n")
    return "".join(parts)
