"""What a judge is known to find and to spare of ``withheld``, as counts on labelled responses; they lie in ``detector.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from abliterate.measures.agreement import corrected_rate
from abliterate.measures.statistics import wilson

FILE = Path(__file__).parent / "detector.toml"
RULES = "rules"


@dataclass(frozen=True)
class Detector:
    """``sensitivity``: of the responses that withhold, (how many are judged so, all). ``specificity``: likewise of the others."""

    sensitivity: tuple[int, int]
    specificity: tuple[int, int]

    def corrected(self, k: int, n: int) -> dict[str, Any] | None:
        """The rate behind k withheld of n as ``{rate, ci95}``; None where it can't be told.

        It holds as far as the judge errs on these texts as it does on those it was measured on. Where more are found than it is known
        to find, or fewer than it finds where there is nothing, the interval would be a single point, which says too much: it then
        reaches as far as that of k / n.
        """
        found = corrected_rate(k, n, *self.sensitivity, *self.specificity)
        if found is None:
            return None
        rate, (low, high) = found
        if low == high:
            seen = wilson(k, n)
            low, high = min(low, seen[0]), max(high, seen[1])
        return {"rate": rate, "ci95": [min(low, rate), max(high, rate)]}  # an interval that is shifted may miss a rate cut to 0 or 1


def detector_of(judge: str) -> Detector | None:
    """The measured figures of a judge by its name; None for a judge that was not measured."""
    return _measured().get(judge)


@cache
def _measured() -> dict[str, Detector]:
    tables = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: Detector(_counts(table["sensitivity"]), _counts(table["specificity"])) for name, table in tables.items()}


def _counts(table: dict[str, int]) -> tuple[int, int]:
    return table["k"], table["n"]


def as_toml(judge: str, detector: Detector, measured_on: str) -> str:
    """The content of the file for one judge."""
    sensitivity, specificity = (f"{{ k = {k}, n = {n} }}" for k, n in (detector.sensitivity, detector.specificity))
    return (
        f"# What the built-in judge finds and spares of `withheld`, on {measured_on}.\n"
        "# `scripts/bench outcomes --write` measures it again and writes this file.\n\n"
        f"[{judge}]\nsensitivity = {sensitivity}\nspecificity = {specificity}\n"
    )
