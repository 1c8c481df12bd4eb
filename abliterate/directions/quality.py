"""The quality of each estimate: the content of directions.json."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.config import ESTIMATORS
from abliterate.directions.activations import Activations
from abliterate.directions.document import Components, DirectionsQuality, Estimate, Separation
from abliterate.directions.estimate import Directions, estimate, keep_directions
from abliterate.directions.estimators.table import TABLE
from abliterate.directions.halves import estimate_without_val, stability
from abliterate.directions.keep import cosine
from abliterate.directions.keys import BASELINE, HARMLESS, TARGET, GroupKey
from abliterate.errors import InputError

_DIGITS = 5


def measured(activations: Activations, estimators: Sequence[str] = ()) -> Directions:
    """The directions of the named estimators; default: all that these activations allow.

    Without val vectors, estimates from each half of the train prompts are scored on the other half. Raises InputError if there are neither
    val vectors nor enough prompts for halves.
    """
    names = tuple(estimators) or tuple(name for name in ESTIMATORS if HARMLESS in activations.train or not TABLE[name].harmless)
    if activations.val:
        return estimate(activations, names)
    found = estimate_without_val(activations, names)
    if found is None:
        raise InputError("too few prompts to judge the directions: use prompt sets with a val split, or with at least four prompts each")
    return found


def sentences_on_scope(directions: Directions) -> list[str]:
    """One line per scoped direction: how much of it is left where it separates best, and the least and the most anywhere."""
    said = []
    for name, scoping in directions.scoping.items():
        position, layer = _farthest(directions, name)
        share = scoping.share[:, 1:]
        alike = ", ".join(f"{set_} {float(values[position, layer + 1]):.2f}" for set_, values in scoping.cosine.items())
        said.append(
            f"{name}: {float(share[position, layer]):.0%} of the direction is left at block {layer}, position {-1 - position} "
            f"({float(share.min()):.0%} to {float(share.max()):.0%} over all; lambda {scoping.ridge:g}; cosine before scoping: {alike})"
        )
    return said


def quality_document(activations: Activations, directions: Directions) -> DirectionsQuality:
    """The content of directions.json, as plain numbers, the same each time: each estimate's separation on val, length, cosine with the keep
    sets' directions, and stability; the place where target and baseline are farthest apart; and the sets' vectors at that layer and the
    last position, in two principal components."""
    keep = keep_directions(activations)
    stable = stability(activations, directions)
    best = separation(directions)
    estimators: dict[str, Estimate] = {}
    for name in directions.estimators:
        direction = directions.direction[name]
        positions = len(direction)
        scoping = directions.scoping.get(name)
        estimators[name] = Estimate(
            positions=tuple(activations.positions[:positions]),
            auc=_matrix(directions.auc[name]),
            cohens_d=_matrix(directions.cohens_d[name]),
            norm=_matrix(direction.double().norm(dim=-1)),
            cosine_keep={set_: _matrix(cosine(direction, own[:positions])) for set_, own in keep.items()},
            stability=_row(stable[name]) if name in stable else None,
            share_left=_matrix(scoping.share) if scoping else None,
            ridge=scoping.ridge if scoping else None,
        )
    return DirectionsQuality(
        positions=tuple(activations.positions),
        layers=next(iter(directions.direction.values())).shape[1] - 1,
        held_out="val" if activations.val else "halves",
        estimators=estimators,
        separation=best,
        pca=pca(activations, best.layer + 1),
    )


def separation(directions: Directions) -> Separation:
    """Where the competing estimates separate best. Uses Cohen's d, because the AUC is often one at many places."""
    name = max(directions.competing, key=lambda each: float(directions.cohens_d[each][:, 1:].max()))
    position, layer = _farthest(directions, name)
    return Separation(estimator=name, position=-1 - position, layer=layer)


def _farthest(directions: Directions, name: str) -> tuple[int, int]:
    """The position (0 is the last token) and the block at which an estimate's Cohen's d is largest."""
    score = directions.cohens_d[name][:, 1:]
    position, layer = divmod(int(score.argmax()), score.shape[1])
    return position, layer


def pca(activations: Activations, index: int) -> Components:
    """The train and val vectors of target, baseline and keep sets at one activation index and the last position, in their first two
    principal components. ``explained``: the share of the variance in each. Signs put the target to the upper right of the baseline."""
    keep = {key: key.keep_set for key in activations.train if key.keep_set is not None}
    vectors = {key: _at(activations, key, index) for key in (TARGET, BASELINE, *keep)}
    every = torch.cat(list(vectors.values()))
    mean = every.mean(0)
    centred = every - mean
    _, lengths, axes = torch.linalg.svd(centred, full_matrices=False)
    apart = vectors[TARGET].mean(0) - vectors[BASELINE].mean(0)
    two = axes[:2] * torch.where(axes[:2] @ apart < 0, -1.0, 1.0)[:, None].to(axes.dtype)
    points = {key: _points((own - mean) @ two.T) for key, own in vectors.items()}
    share = lengths[:2].square() / lengths.square().sum().clamp_min(1e-300)
    return Components(
        index=index,
        position=-1,
        explained=_row(share),
        target=points[TARGET],
        baseline=points[BASELINE],
        keep={name: points[key] for key, name in keep.items()},
    )


def _at(activations: Activations, key: GroupKey, index: int) -> Float[Tensor, "prompt d_model"]:
    parts = [activations.train[key].last[:, index]]
    if key in activations.val:
        parts.append(activations.val[key][:, 0, index])
    return torch.cat(parts).double()


def _matrix(values: Float[Tensor, "row column"]) -> tuple[tuple[float, ...], ...]:
    return tuple(_row(row) for row in values)


def _points(values: Float[Tensor, "prompt 2"]) -> tuple[tuple[float, float], ...]:
    return tuple((_rounded(x), _rounded(y)) for x, y in values.tolist())


def _row(values: Float[Tensor, " n"]) -> tuple[float, ...]:
    return tuple(_rounded(value) for value in values.tolist())


def _rounded(value: float) -> float:
    """A few significant digits keep the file small."""
    return float(f"{value:.{_DIGITS}g}")
