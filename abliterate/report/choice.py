"""How the edit was come to, in words: chosen among candidates, tuned, or searched for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_MARKS = {"gradient": "tuning began here", "search": "the best before the search"}


def picked(selection: Mapping[str, Any] | None) -> str | None:
    """The chosen edit and what it came to on val; None where nothing was chosen. Older runs name the candidate alone."""
    if not selection:
        return None
    name = selection.get("name") or (selection.get("chosen") or {}).get("name")
    point = next((each for each in _tuning(selection).get("front") or [] if each["chosen"]), None)
    if name is None or point is None:
        return name
    left = f"{100 * point['target_left']:.1f} % of the target's openings left on val"
    given_up = "".join(f"; {said}" for said in _tuning(selection).get("given_up") or ())
    return f"{name} ({left}, KL {point['kl']:.3f} nats{given_up})"


def mark(selection: Mapping[str, Any] | None) -> str:
    """What the candidate is that ``selection`` calls the chosen one."""
    return _MARKS.get(_tuning(selection or {}).get("kind", ""), "chosen")


def way(selection: Mapping[str, Any] | None) -> list[str]:
    """Which filters were in force, how it was improved on, and by what it was taken."""
    return list(_said(selection)) if selection else []


def _said(selection: Mapping[str, Any]) -> Iterator[str]:
    tuning, relaxed = _tuning(selection), "; ".join(selection.get("relaxed") or [])
    kind = tuning.get("kind")
    yield "Scores on val prompts, by forward passes with the candidate applied by hooks."
    if kind == "gradient":
        start = (selection.get("chosen") or {}).get("name")
        begun = f" (it started from “{start}”)" if start else ""
        yield f"The filters of single candidates were not applied to where tuning began{begun}."
    if relaxed or kind != "gradient":
        yield f"Relaxed: {relaxed}." if relaxed else "No filter was relaxed."
    if kind in ("gradient", "search"):
        yield _improved(tuning)


def _improved(tuning: Mapping[str, Any]) -> str:
    seed, steps, trials = tuning.get("seed"), tuning.get("steps"), _trials(tuning)
    if tuning["kind"] == "search":
        done = f"Searched: {trials} trials" if trials else "Searched"
    else:
        done = f"Tuned by gradients in {steps} steps" if steps else "Tuned by gradients"
    asked = [f"--prefer {tuning['prefer']}"] if tuning.get("prefer") else []
    asked += [] if tuning.get("max_kl") is None else [f"--max-kl {tuning['max_kl']:g}"]
    edit = "tuned edit" if _is_tuned(tuning) else "edit"
    taken = f"; the {edit} was taken from the front by {' and '.join(asked)}" if asked else ""
    return f"{done}{'' if seed is None else f' (seed {seed})'}{taken}."


def _is_tuned(tuning: Mapping[str, Any]) -> bool:
    return tuning["kind"] == "gradient" and any(each["chosen"] and improved(tuning, each) for each in tuning.get("front") or [])


def _trials(tuning: Mapping[str, Any]) -> int:
    return sum(improved(tuning, each) for each in tuning.get("front") or [])


def improved(tuning: Mapping[str, Any], point: Mapping[str, Any]) -> bool:
    """Whether a point of the front is tuned or searched for, and not a candidate as it was estimated (all of those are of step 0)."""
    if tuning.get("kind") == "search":
        return str(point.get("name", "")).startswith("trial ")
    return tuning.get("kind") == "gradient" and int(point["step"]) > 0


def _tuning(selection: Mapping[str, Any]) -> Mapping[str, Any]:
    return selection.get("tuning") or {}
