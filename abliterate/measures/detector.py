"""The measured sensitivity and specificity of a judge for ``withheld``, as counts on labelled replies, from ``detector.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from abliterate.measures.agreement import corrected_rate
from abliterate.measures.parts.rates import Corrected
from abliterate.measures.statistics import wilson

FILE = Path(__file__).parent / "detector.toml"
RULES = "rules"


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


def detector_of(judge: str) -> Detector | None:
    """The measured figures of a judge, by its name; None if the judge was not measured."""
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
        f"# Sensitivity and specificity of the built-in judge for `withheld`, on {measured_on}.\n"
        "# `scripts/bench outcomes --write` measures them again and writes this file.\n\n"
        f"[{judge}]\nsensitivity = {sensitivity}\nspecificity = {specificity}\n"
    )
