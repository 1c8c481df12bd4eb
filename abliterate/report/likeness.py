"""Compare two reports of one run, figure by figure: identical, within the first one's interval, or different."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from abliterate.files import Json
from abliterate.measures.statistics import wilson
from abliterate.report.tree.report import Report
from abliterate.report.tree.reproduction import MeasureTotals, Totals, Verdict

CLOSE = 0.01  # relative tolerance for a figure without an interval: another order of summation may move it this far
NOISE = 1e-6  # absolute tolerance: smaller differences are noise
PARTS = (
    "sets", "by_topic", "tables", "against_control", "thought_by_answer", "unchanged", "keep_tests", "controls", "recovery", "elicitation",
    "consistency", "drift", "benchmarks", "weights", "edit",
)  # fmt: skip
CHOICES = (("chosen", "name"), ("name",), ("strength",), ("scoped", "share_left"))  # paths in ``selection`` that say what was chosen
# Keys that follow from other figures of the same report or put them into words.
_DERIVED = {
    "ci95", "corrected", "withheld_clustered", "mcnemar_p", "holm_p", "upper_bound", "clusters", "unit", "warning", "margin", "reasons",
    "reading", "known",
    "prompts", "why",  # of consistency: rows of single prompts, and the validation in words
}  # fmt: skip
_BY_SET = ("sets", "by_topic", "tables", "thought_by_answer")
_EXACT = {"n", "n_pairs", "n_answered", "n_withheld", "tokens"}
_NAMED_BY = ("set", "control", "measure", "topic", "lang", "tokens", "layer")  # keys that identify the rows of a list

Path = tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """One figure of a report; ``interval`` is its 95 % interval. A count has ``of``, its total, and Wilson's interval of its share."""

    value: Any  # a number, a truth value or a name
    interval: tuple[float, float] | None = None
    of: int | None = None

    @property
    def share(self) -> float:
        """The number to compare with an interval."""
        return float(self.value / self.of if self.of else self.value)


@dataclass(frozen=True)
class Compared:
    """A figure in both reports; None in a report that lacks it."""

    path: Path
    before: Figure | None
    now: Figure | None
    verdict: Verdict

    @property
    def set(self) -> str:
        """The figure's prompt set; empty if it belongs to no set."""
        if self.path[0] in _BY_SET:
            return self.path[1]
        if self.path[:2] in (("recovery", "sets"), ("elicitation", "sets"), ("consistency", "sets")):
            return self.path[2]
        return self.path[1].split("/")[0] if self.path[0] in ("against_control", "unchanged", "keep_tests") else ""

    @property
    def measure(self) -> str:
        """What the figure measures, of its set or of the whole run."""
        if self.path[0] != "sets":
            return self.path[1] if self.path[0] == "drift" else self.path[0]
        rest = [part for part in self.path[2:] if part not in ("base", "edited")]
        if rest[0] == "by_lang":
            rest = rest[2:]
        return rest[0]


def figures(report: Report) -> dict[Path, Figure]:
    """Every figure of a report by its path, except those that follow from others."""
    document = report.document()
    parts = {part: document[part] for part in PARTS if document.get(part) is not None}
    found = {path: figure for part, value in parts.items() if part != "consistency" for path, figure in _walk(value, (part,), None)}
    if "consistency" in parts:
        found |= dict(_of_samples(parts["consistency"], document["sets"]))
    for choice in CHOICES:
        value = document.get("selection")
        for key in choice:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            found["selection", *choice] = Figure(value)
    return found


def _of_samples(consistency: Mapping[str, Any], sets: Mapping[str, Any]) -> Iterator[tuple[Path, Figure]]:
    """Figures of consistency. Its counts depend on which samples answer and what they claim, so each has a total: the prompts of its set,
    of both models if it counts both. A set of which no worth changed is not among ``changed``, and counts 0."""
    rest = {key: value for key, value in consistency.items() if key not in ("sets", "worth")}
    yield from _walk({**rest, "worth": {**consistency["worth"], "changed": {}}}, ("consistency",), None)
    for name, entry in consistency["sets"].items():
        n, models = sets[name]["n"], 2 if sets[name]["edited"] else 1
        yield from _walk(entry, ("consistency", "sets", name), n)
        yield from _walk(consistency["worth"]["changed"].get(name, 0), ("consistency", "worth", "changed", name), models * n)


def _walk(value: Any, path: Path, n: int | None) -> Iterator[tuple[Path, Figure]]:
    """Figures inside a value; ``n`` is the total of the counts there."""
    if isinstance(value, dict):
        if {"k", "n", "rate", "ci95"} <= value.keys():
            yield path, Figure(value["rate"], _pair(value["ci95"]))
            return
        n = _counted(value, n)
        for key, inner in value.items():
            if key in _DERIVED or key.endswith("_ci95"):
                continue
            interval = _pair(value.get("ci95") if key == "difference" else value.get(f"{key}_ci95"))
            if interval is not None and isinstance(inner, int | float):
                yield (*path, key), Figure(inner, interval)
            else:
                yield from _walk(inner, (*path, key), None if key in _EXACT else n)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _walk(inner, (*path, _row_name(inner, number)), n)
    elif value is not None:
        counts = isinstance(value, int) and not isinstance(value, bool) and bool(n) and 0 <= value <= (n or 0)
        yield path, Figure(value, wilson(value, n), n) if counts and n else Figure(value)


def _counted(value: Json, n: int | None) -> int | None:
    """The total of the counts in an object: its own n, its models' n, the sum of its table, or else the n of the object around it."""
    own = value.get("n", value.get("n_pairs"))
    if isinstance(own, int):
        return own
    base = value.get("base")
    if isinstance(base, dict) and isinstance(base.get("refused"), dict):
        return int(base["refused"]["n"])
    if {"true", "others"} <= value.keys():  # of what a score should separate
        return int(value["true"] + value["others"])
    if isinstance(value.get("counts"), dict):
        return sum(sum(row.values()) for row in value["counts"].values())
    return n


def _pair(given: Any) -> tuple[float, float] | None:
    return (float(given[0]), float(given[1])) if isinstance(given, Sequence) and len(given) == 2 else None


def _row_name(row: Any, number: int) -> str:
    names = [str(row[key]) for key in _NAMED_BY if key in row] if isinstance(row, Mapping) else []
    return "/".join(names) or str(number)


def compare(before: Report, now: Report) -> list[Compared]:
    """Compare every figure of the first report with the same figure of the second."""
    first, second = figures(before), figures(now)
    return [Compared(path, figure, second.get(path), verdict(figure, second.get(path))) for path, figure in first.items()]


def verdict(before: Figure, now: Figure | None) -> Verdict:
    """``within``: the second number lies in the first's interval or, if there is none, is as close as rounding on another machine."""
    if now is None:
        return "different"
    if before.value == now.value and isinstance(before.value, bool) == isinstance(now.value, bool):
        return "identical"
    if not (_is_number(before.value) and _is_number(now.value)):
        return "different"
    if before.interval is not None:
        low, high = before.interval
        return "within" if low <= now.share <= high else "different"
    close = isinstance(before.value, float) and math.isclose(before.value, now.value, rel_tol=CLOSE, abs_tol=NOISE)
    return "within" if close else "different"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def totals(found: Sequence[Compared]) -> Totals:
    """The number of figures with each verdict."""
    counts = Counter(one.verdict for one in found)
    return Totals(identical=counts["identical"], within=counts["within"], different=counts["different"])


def by_measure(found: Sequence[Compared]) -> list[MeasureTotals]:
    """The totals per set and measure, in the order of the report."""
    groups: dict[tuple[str, str], list[Compared]] = {}
    for one in found:
        groups.setdefault((one.set, one.measure), []).append(one)
    summed = ((of, measure, totals(group)) for (of, measure), group in groups.items())
    return [
        MeasureTotals(set=of, measure=measure, identical=all_.identical, within=all_.within, different=all_.different)
        for of, measure, all_ in summed
    ]
