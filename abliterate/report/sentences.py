"""Findings of the report in words: one plain sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def against_control(report: Mapping[str, Any]) -> Iterator[str]:
    """Each sensitive set against its control, of each model and in each language."""
    for entry in report["against_control"] or []:
        for side in ("base", "edited"):
            if entry[side] is None:
                continue
            model = "" if entry["edited"] is None else f" ({side})"
            yield f"{entry['set']} against its control {entry['control']}{model}: {_compared(entry[side], entry['n_pairs'])}"
            for lang, part in entry.get("by_lang", {}).items():
                yield f"{entry['set']}, {lang}{model}: {_compared(part[side], part['n_pairs'])}"


def _compared(found: Mapping[str, Any], pairs: int) -> str:
    interval = ""
    if found["ci95"] is not None:
        low, high = (100 * bound for bound in found["ci95"])
        over = f" over {found['clusters']} topics" if found["clusters"] < pairs else ""
        interval = f" (95 % {low:+.1f} to {high:+.1f}{over}{', too few to rely on' if found['warning'] else ''})"
    return (
        f"withheld {100 * found['sensitive']['rate']:.1f} % against {100 * found['control']['rate']:.1f} % of {pairs} pairs, "
        f"{100 * found['difference']:+.1f} points{interval}; only the sensitive one {found['sensitive_only']} times, "
        f"only the control {found['control_only']} times (exact paired test, p = {found['mcnemar_p']:.2g})."
    )


def warnings(report: Mapping[str, Any]) -> Iterator[str]:
    """What to know of intervals that rest on few topics, once a set."""
    for name, entry in report["sets"].items():
        said = entry["base"].get("withheld_clustered", {}).get("warning")
        if said:
            yield f"{name}: {said}."


def all_of(report: Mapping[str, Any]) -> list[str]:
    """Everything that is said in words."""
    return [*warnings(report), *against_control(report), *unchanged(report), *weights(report)]


def unchanged(report: Mapping[str, Any]) -> Iterator[str]:
    """Whether what should stay answered did."""
    for test in report["unchanged"] or []:
        measure = "broken output" if test["measure"] == "degenerate" else test["measure"]
        shown = "shown" if test["holds"] else "NOT shown"
        yield f"{measure} of {test['set']} did not rise by more than {100 * test['margin']:.0f} points: {shown}."


_VERDICTS = {
    "directional": "a directional edit: what they write along a direction of the residual stream was scaled down",
    "identical": "no difference",
    "other": "something else than a directional edit (training, a merged adapter, another model)",
}


def weights(report: Mapping[str, Any]) -> Iterator[str]:
    """What differs between two models' weights."""
    found = report.get("weights")
    if found is None:
        return
    if not found["compared"]:
        yield f"weights not compared: {found['why']}."
        return
    total = sum(found["changed"].values()) + sum(found["same"].values())
    yield f"weights: {sum(found['changed'].values())} of {total} tensors differ; {_VERDICTS[found['verdict']]}."
    yield from found["reasons"]
