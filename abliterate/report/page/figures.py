"""The plots for which a report has figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from abliterate.choice.records import Selection, TuningRecord
from abliterate.directions.document import Components, DirectionsQuality
from abliterate.report.choice import improved
from abliterate.report.page.plots import INDEX, Plot, TradePoint, cloud, lines, separation, trade
from abliterate.report.tree.report import Report


def of_layers(report: Report, auc: Mapping[str, Sequence[float]] | None) -> list[Plot]:
    """Plots of where the model separates the prompt sets and how strongly each layer is edited.

    ``auc``: the separation on val at the last position, by activation index, one line per estimator.
    """
    tuning = report.selection.tuning if report.selection else None
    plots = list(_of_directions(report.directions)) if report.directions else []
    if auc:
        said = "AUC of target against baseline prompts on val, at the last position; 0.5 is chance."
        plots.insert(1, lines("auc", "Separation by layer", said, auc, (INDEX, "AUC on val"), (0.0, 1.0), 0.5))
    if tuning:
        plots += _of_tuning(tuning)
    return plots


def _of_directions(directions: DirectionsQuality) -> Iterator[Plot]:
    at = directions.separation
    found = directions.estimators[at.estimator]
    chosen = (at.layer + 1, at.position)
    yield separation("separation", [[value or 0.0 for value in row] for row in found.auc], found.positions, chosen)
    if directions.pca:
        yield _pca(directions.pca)
    row = found.positions.index(at.position) if at.position in found.positions else 0
    cosines = {f"to {name}": values[row] for name, values in found.cosine_keep.items()}
    if cosines:
        said = f"Cosine between the direction and each keep set's refusal direction, position {found.positions[row]}; 0 is unrelated."
        yield lines("cosine", "Similarity to the keep sets", said, cosines, (INDEX, "cosine"), (-1.0, 1.0), 0.0)
    stable = {name: each.stability for name, each in directions.estimators.items() if each.stability}
    if stable:
        said = "Cosine between the directions estimated on two halves of the train prompts; 1 means that they are the same."
        yield lines("stability", "Stability of the direction", said, stable, (INDEX, "cosine"), (0.0, 1.0))


def _pca(pca: Components) -> Plot:
    groups = {"target": pca.target, "baseline": pca.baseline, **{f"keep: {name}": xy for name, xy in pca.keep.items()}}
    first, second = (f"{100 * share:.0f} %" for share in pca.explained)
    said = f"Principal components at activation index {pca.index}, position {pca.position}; in brackets, the explained variance."
    return cloud("pca", "Prompts at the direction's layer", said, groups, (f"first component ({first})", f"second component ({second})"))


def _of_tuning(tuning: TuningRecord) -> Iterator[Plot]:
    said = "Share of the component along the direction that is removed."
    if tuning.strength:
        yield _by_block("strength", "Strength by block", "strength", said, tuning.strength)
    turned = "Cosine to the direction that tuning started from; 1 means not turned."
    if tuning.cosine_to_start:
        yield _by_block("cosine-to-start", "How far tuning turned the direction", "cosine", turned, tuning.cosine_to_start)


def _by_block(name: str, title: str, axis: str, said: str, values: Sequence[tuple[float | None, float | None]]) -> Plot:
    attention, mlp = ([row[i] for row in values] for i in (0, 1))
    return lines(name, title, said, {"attention": attention, "MLP": mlp}, ("block", axis), (0.0, 1.0))


def of_choice(report: Report) -> list[Plot]:
    """The trade-off plot: the tuning's Pareto front, or else the candidates."""
    selection = report.selection
    if not selection:
        return []
    return [_front(selection.tuning)] if selection.tuning and selection.tuning.front else _of_candidates(selection)


def _of_candidates(selection: Selection) -> list[Plot]:
    measured = [
        (c.kl, 100 * c.stays, c.name == selection.chosen.name) for c in selection.candidates if c.kl is not None and c.stays is not None
    ]
    if len(measured) < 2:
        return []
    places = [(x, y) for x, y, _ in measured]
    points = [TradePoint(x, y, front=not any(_better(other, (x, y)) for other in places), chosen=chosen) for x, y, chosen in measured]
    said = "Each point is a candidate, measured on val prompts. Further left: less side effect; lower: less of the target left."
    axis = ("drift: KL, first token (nats)", "withheld openings that stay (%)")
    return [trade("candidates", "Trade-off among the candidates", said, points, axis)]


def _better(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one != other


def _front(tuning: TuningRecord) -> Plot:
    points = [
        TradePoint(p.kl, 100 * p.target_left, front=p.on_front, chosen=p.chosen, improved=improved(tuning, p))
        for p in tuning.front
        if p.kl is not None and p.target_left is not None  # else the edit broke the model's output
    ]
    said = "Each point is an edit, measured on val prompts. Further left: less side effect; lower: less of the target left."
    axis = ("drift: KL, first token (nats)", "target left (%)")
    best = "Pareto front (with the KL on keep prompts as a third measure)"
    made = "found by the search" if tuning.kind == "search" else "tuned"
    return trade("front", "Trade-off between removal and drift", said, points, axis, best, made)
