"""How the edit was found, in words: chosen among candidates, tuned, or searched for."""

from __future__ import annotations

from collections.abc import Iterator

from abliterate.choice.records import FrontPoint, Selection, TuningRecord

_MARKS = {"gradient": "tuning began here", "search": "the best before the search"}


def picked(selection: Selection | None) -> str | None:
    """The chosen edit with its scores on val; None if nothing was chosen."""
    if selection is None:
        return None
    point = next((each for each in _front(selection) if each.chosen), None)
    if selection.tuning is None or point is None or point.kl is None:
        return selection.called
    given_up = "".join(f"; {said}" for said in selection.tuning.given_up or ())
    return f"{selection.called} (on val prompts: {_left(point)}; KL of the first token {point.kl:.3f} nats{given_up})"


def _left(point: FrontPoint) -> str:
    """How much of the target an edit leaves: by its replies, or by the openings' probability if it wrote none."""
    if target := (point.replies or {}).get("target"):
        return f"of {target.asked} replies that the base withheld, {target.withheld} are still withheld"
    return f"{100 * (point.target_left or 0.0):.1f} % of the probability of the base's withholding openings is left"


def _front(selection: Selection | None) -> tuple[FrontPoint, ...]:
    return selection.tuning.front if selection and selection.tuning else ()


def replied(selection: Selection | None) -> list[FrontPoint]:
    """The edits of the front that replied to val prompts."""
    return [each for each in _front(selection) if each.replies]


def mark(selection: Selection | None) -> str:
    """Label of the candidate that ``selection`` records as chosen."""
    kind = selection.tuning.kind if selection and selection.tuning else ""
    return _MARKS.get(kind, "chosen")


def way(selection: Selection | None) -> list[str]:
    """Sentences: which filters applied, how the edit was improved, and how it was picked from the front."""
    return list(_said(selection)) if selection else []


def _said(selection: Selection) -> Iterator[str]:
    tuning, relaxed = selection.tuning, "; ".join(selection.relaxed)
    kind = tuning.kind if tuning else None
    yield "Candidates were scored on val prompts, by forward passes with hooks that apply the edit."
    if kind == "gradient":
        yield f"The filters for single candidates were not applied to the edit that tuning started from (“{selection.chosen.name}”)."
    if relaxed or kind != "gradient":
        yield f"Relaxed: {relaxed}." if relaxed else "No filter was relaxed."
    if tuning and kind in ("gradient", "search"):
        yield _improved(tuning)


def _improved(tuning: TuningRecord) -> str:
    trials = sum(improved(tuning, each) for each in tuning.front)
    if tuning.kind == "search":
        done = f"Searched: {trials} trials" if trials else "Searched"
    else:
        done = f"Tuned by gradients in {tuning.steps} steps" if tuning.steps else "Tuned by gradients"
    asked = [f"--prefer {tuning.prefer}", *([] if tuning.max_kl is None else [f"--max-kl {tuning.max_kl:g}"])]
    is_tuned = tuning.kind == "gradient" and any(each.chosen and improved(tuning, each) for each in tuning.front)
    by = " and by its replies to val prompts" if any(each.replies for each in tuning.front) else ""
    taken = f"the {'tuned edit' if is_tuned else 'edit'} was picked from the Pareto front by {' and '.join(asked)}{by}"
    return f"{done} (seed {tuning.seed}); {taken}."


def improved(tuning: TuningRecord, point: FrontPoint) -> bool:
    """Whether a point of the front comes from tuning or the search. False for a candidate as estimated; those all have step 0."""
    if tuning.kind == "search":
        return (point.name or "").startswith("trial ")
    return tuning.kind == "gradient" and point.step > 0
