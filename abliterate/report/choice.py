"""How the edit was found, in words: chosen among candidates, tuned, or searched for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_MARKS = {"gradient": "tuning began here", "search": "the best before the search"}


def picked(selection: Mapping[str, Any] | None) -> str | None:
    """The chosen edit with its scores on val; None if nothing was chosen. Older runs record only the candidate's name."""
    if not selection:
        return None
    name = selection.get("name") or (selection.get("chosen") or {}).get("name")
    point = next((each for each in _tuning(selection).get("front") or [] if each["chosen"]), None)
    if name is None or point is None:
        return name
    left = f"on val: {_left(point)}"
    given_up = "".join(f"; {said}" for said in _tuning(selection).get("given_up") or ())
    return f"{name} ({left}, KL {point['kl']:.3f} nats{given_up})"


def _left(point: Mapping[str, Any]) -> str:
    """How much of the target an edit leaves: by its replies, or by the openings' probability if it wrote none."""
    if target := (point.get("replies") or {}).get("target"):
        return f"{target['withheld']} of {target['asked']} withheld replies are still withheld"
    return f"{100 * point['target_left']:.1f} % of the probability of withheld openings left"


def replied(selection: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The edits of the front that replied to val prompts."""
    return [each for each in _tuning(selection or {}).get("front") or [] if each.get("replies")]


def mark(selection: Mapping[str, Any] | None) -> str:
    """Label of the candidate that ``selection`` records as chosen."""
    return _MARKS.get(_tuning(selection or {}).get("kind", ""), "chosen")


def way(selection: Mapping[str, Any] | None) -> list[str]:
    """Sentences: which filters applied, how the edit was improved, and how it was picked from the front."""
    return list(_said(selection)) if selection else []


def _said(selection: Mapping[str, Any]) -> Iterator[str]:
    tuning, relaxed = _tuning(selection), "; ".join(selection.get("relaxed") or [])
    kind = tuning.get("kind")
    yield "Candidates were scored on val prompts, by forward passes with hooks that apply the edit."
    if kind == "gradient":
        start = (selection.get("chosen") or {}).get("name")
        begun = f" (“{start}”)" if start else ""
        yield f"The filters for single candidates were not applied to the edit that tuning started from{begun}."
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
    by = " and by its replies to val prompts" if any(each.get("replies") for each in tuning.get("front") or []) else ""
    taken = f"; the {edit} was picked from the Pareto front by {' and '.join(asked)}{by}" if asked else ""
    return f"{done}{'' if seed is None else f' (seed {seed})'}{taken}."


def _is_tuned(tuning: Mapping[str, Any]) -> bool:
    return tuning["kind"] == "gradient" and any(each["chosen"] and improved(tuning, each) for each in tuning.get("front") or [])


def _trials(tuning: Mapping[str, Any]) -> int:
    return sum(improved(tuning, each) for each in tuning.get("front") or [])


def improved(tuning: Mapping[str, Any], point: Mapping[str, Any]) -> bool:
    """Whether a point of the front comes from tuning or the search. False for a candidate as estimated; those all have step 0."""
    if tuning.get("kind") == "search":
        return str(point.get("name", "")).startswith("trial ")
    return tuning.get("kind") == "gradient" and int(point["step"]) > 0


def _tuning(selection: Mapping[str, Any]) -> Mapping[str, Any]:
    return selection.get("tuning") or {}
