"""The plots for which a report has figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from abliterate.report.choice import improved
from abliterate.report.page.plots import INDEX, Plot, cloud, lines, separation, trade


def of_layers(report: Mapping[str, Any], auc: Mapping[str, Sequence[float]] | None) -> list[Plot]:
    """Plots of where the model separates the prompt sets and how strongly each layer is edited.

    ``auc``: the separation on val at the last position, by activation index, one line per estimator.
    """
    directions, tuning = report.get("directions"), (report["selection"] or {}).get("tuning")
    plots = list(_of_directions(directions)) if directions else []
    if auc:
        said = "AUC of target against baseline prompts on val, at the last position; 0.5 is chance."
        plots.insert(1, lines("auc", "Separation by layer", said, auc, (INDEX, "AUC on val"), (0.0, 1.0), 0.5))
    if tuning:
        plots += _of_tuning(tuning)
    return plots


def _of_directions(directions: Mapping[str, Any]) -> Iterator[Plot]:
    at = directions["separation"]
    found = directions["estimators"][at["estimator"]]
    chosen = (at["layer"] + 1, at["position"])
    yield separation("separation", found["auc"], found["positions"], chosen)
    if directions.get("pca"):
        yield _pca(directions["pca"])
    row = found["positions"].index(at["position"]) if at["position"] in found["positions"] else 0
    cosines = {f"to {name}": values[row] for name, values in (found.get("cosine_keep") or {}).items()}
    if cosines:
        said = f"Cosine between the direction and each keep set's refusal direction, position {found['positions'][row]}; 0 is unrelated."
        yield lines("cosine", "Similarity to the keep sets", said, cosines, (INDEX, "cosine"), (-1.0, 1.0), 0.0)
    stable = {name: e["stability"] for name, e in directions["estimators"].items() if e.get("stability")}
    if stable:
        said = "Cosine between the directions estimated on two halves of the train prompts; 1 means that they are the same."
        yield lines("stability", "Stability of the direction", said, stable, (INDEX, "cosine"), (0.0, 1.0))


def _pca(pca: Mapping[str, Any]) -> Plot:
    groups = {"target": pca["target"], "baseline": pca["baseline"], **{f"keep: {name}": xy for name, xy in pca["keep"].items()}}
    first, second = (f"{100 * share:.0f} %" for share in pca["explained"])
    said = f"Principal components at activation index {pca['index']}, position {pca['position']}; in brackets, the explained variance."
    return cloud("pca", "Prompts at the direction's layer", said, groups, (f"first component ({first})", f"second component ({second})"))


def _of_tuning(tuning: Mapping[str, Any]) -> Iterator[Plot]:
    named = (("strength", "Strength by block", "strength", (0.0, 1.0), "Share of the component along the direction that is removed."),)
    moved = (
        "cosine_to_start",
        "How far tuning turned the direction",
        "cosine",
        (0.0, 1.0),
        "Cosine to the direction that tuning started from; 1 means not turned.",
    )
    for key, title, axis, reach, said in (*named, moved):
        if tuning.get(key):
            attention, mlp = ([row[i] for row in tuning[key]] for i in (0, 1))
            yield lines(key.replace("_", "-"), title, said, {"attention": attention, "MLP": mlp}, ("block", axis), reach)


def of_choice(report: Mapping[str, Any]) -> list[Plot]:
    """The trade-off plot: the tuning's Pareto front, or else the candidates."""
    selection = report["selection"]
    if not selection:
        return []
    tuning = selection.get("tuning")
    if tuning and tuning.get("front"):
        return [_front(tuning)]
    points = [
        {"x": c["kl"], "y": 100 * c["stays"], "front": False, "chosen": c["name"] == selection["chosen"]["name"]}
        for c in selection.get("candidates", [])
        if c.get("kl") is not None and c.get("stays") is not None
    ]
    if len(points) < 2:
        return []
    for point in points:
        point["front"] = not any(_better(other, point) for other in points)
    said = "Each point is a candidate, measured on val prompts. Further left: less side effect; lower: less of the target left."
    axis = ("drift: KL, first token (nats)", "withheld openings that stay (%)")
    return [trade("candidates", "Trade-off among the candidates", said, points, axis)]


def _better(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one["x"] <= other["x"] and one["y"] <= other["y"] and (one["x"], one["y"]) != (other["x"], other["y"])


def _front(tuning: Mapping[str, Any]) -> Plot:
    points = [
        {"x": p["kl"], "y": 100 * p["target_left"], "front": p["on_front"], "chosen": p["chosen"], "improved": improved(tuning, p)}
        for p in tuning["front"]
        if p["kl"] is not None and p["target_left"] is not None  # else the edit broke the model's output
    ]
    said = "Each point is an edit, measured on val prompts. Further left: less side effect; lower: less of the target left."
    axis = ("drift: KL, first token (nats)", "target left (%)")
    best = "Pareto front (with the KL on keep prompts as a third measure)"
    made = "found by the search" if tuning.get("kind") == "search" else "tuned"
    return trade("front", "Trade-off between removal and drift", said, points, axis, best, made)
