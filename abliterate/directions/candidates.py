"""The edits that compete: one direction for all blocks, or a direction a block from some block up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.activations.file import Activations
from abliterate.directions.estimate import difference_of_means, projected
from abliterate.directions.separation import auc, cohens_d, projections
from abliterate.errors import InputError
from abliterate.model.layouts import COMPONENTS
from abliterate.model.plan import EditPlan, EmbeddingPolicy, plan_from_direction, plan_from_rows

Estimator = Literal["difference-of-means", "projected"]
ESTIMATORS: tuple[Estimator, ...] = ("difference-of-means", "projected")
# A direction a block: from these shares of the depth up.
FIRST_SHARES = (0.25, 1 / 3, 0.5)
_FLAT = 1e-6  # relative to the stream's length: below it the two sets do not differ


@dataclass(frozen=True)
class Directions:
    """Every estimate and how well it separates the val prompts, by position (last token first) and activation index."""

    direction: Mapping[str, Float[Tensor, "position layer_plus_1 d_model"]]
    auc: Mapping[str, Float[Tensor, "position layer_plus_1"]]
    cohens_d: Mapping[str, Float[Tensor, "position layer_plus_1"]]


@dataclass(frozen=True)
class Candidate:
    """One edit to try. ``layer`` is the block whose direction is used, or the first block of a per-layer edit.

    ``shift`` is the direction that activation addition adds, at its own length, after block ``shift_layer``.
    """

    name: str
    kind: Literal["single", "per-layer"]
    estimator: Estimator
    position: int
    layer: int
    plan: EditPlan
    shift: Float[Tensor, " d_model"]
    shift_layer: int


def estimate(activations: Activations) -> Directions:
    """All directions at all positions and layers. Raises InputError where target and baseline do not differ at all."""
    target, baseline = activations.train["target"], activations.train["baseline"]
    bare = difference_of_means(target.mean, baseline.mean)
    if float((bare.norm(dim=-1) / baseline.mean.norm(dim=-1).clamp_min(1e-30)).max()) < _FLAT:
        raise InputError("target and baseline prompts give the same activations: there is no direction between them")
    away = activations.train["harmless"].mean
    found: dict[str, Tensor] = {"difference-of-means": bare, "projected": projected(bare, away)}
    for lang in languages(activations.train):
        own = difference_of_means(activations.train[f"target@{lang}"].mean, activations.train[f"baseline@{lang}"].mean)
        found |= {f"difference-of-means@{lang}": own, f"projected@{lang}": projected(own, away)}
    at = {name: _val_projections(activations, direction) for name, direction in found.items()}
    return Directions(
        direction=found,
        auc={name: auc(t, b) for name, (t, b) in at.items()},
        cohens_d={name: cohens_d(t, b) for name, (t, b) in at.items()},
    )


def languages(groups: Iterable[str]) -> list[str]:
    """The languages that have groups of their own."""
    return sorted({name.partition("@")[2] for name in groups if "@" in name})


def _val_projections(activations: Activations, direction: Tensor) -> tuple[Tensor, Tensor]:
    return projections(activations.val["target"], direction), projections(activations.val["baseline"], direction)


def candidates(directions: Directions, count: int, max_layer_share: float, policy: EmbeddingPolicy, tied: bool) -> list[Candidate]:
    """The ``count`` best-separating single-layer edits, half an estimator, and the per-layer edits at the best position."""
    made: list[Candidate] = []
    for estimator in ESTIMATORS:
        made += _single(directions, estimator, max(1, count // len(ESTIMATORS)), max_layer_share, policy, tied)
    for estimator in ESTIMATORS:
        made += _per_layer(directions, estimator, [estimator])
    for estimator in ESTIMATORS:
        own = [f"{estimator}@{lang}" for lang in languages(directions.direction)]
        made += _per_layer(directions, estimator, own) if own else []
    return made


def at_most(count: int, layers: int, languages: int) -> int:
    """How many edits ``candidates`` gives at most, where the prompts are in so many languages that have directions of their own."""
    per_layer = len({int(share * layers) for share in FIRST_SHARES}) * (2 if languages else 1)
    return len(ESTIMATORS) * (max(1, count // len(ESTIMATORS)) + per_layer)


def _single(
    directions: Directions,
    estimator: Estimator,
    count: int,
    max_layer_share: float,
    policy: EmbeddingPolicy,
    tied: bool,
) -> list[Candidate]:
    found, score = directions.direction[estimator], directions.cohens_d[estimator][:, 1:].clone()
    layers = score.shape[1]
    score[:, int(max_layer_share * layers) :] = -torch.inf
    made: list[Candidate] = []
    for flat in score.flatten().argsort(descending=True).tolist():
        position, layer = divmod(flat, layers)
        if len(made) == count or score[position, layer] == -torch.inf:
            break
        if any(abs(c.layer - layer) < 2 for c in made):  # neighbours are nearly the same edit
            continue
        vector = found[position, layer + 1]
        if vector.norm() == 0:
            continue
        plan = plan_from_direction(vector, layers, policy=policy, tied=tied)
        name = f"{estimator}, block {layer}, position {-1 - position}"
        made.append(Candidate(name, "single", estimator, -1 - position, layer, plan, vector, layer))
    return made


def _per_layer(directions: Directions, estimator: Estimator, removed: Sequence[str]) -> list[Candidate]:
    """At each block from some block up, the span of the ``removed`` estimates there (one, or one a language)."""
    found, score = directions.direction[estimator][:, 1:], directions.cohens_d[estimator][:, 1:]
    layers = found.shape[1]
    position = int(score[:, layers // 3 :].nanmean(1).argmax())
    rows = torch.stack([directions.direction[name][position, 1:] for name in removed], dim=1)
    empty = (rows.norm(dim=-1) == 0).any(-1)  # a zero row: this block has nothing to lose
    rows = torch.where(empty[:, None, None], torch.eye(rows.shape[1], rows.shape[2]), rows)
    what = "a direction a block" if len(removed) == 1 else "a direction a language and block"
    made: list[Candidate] = []
    for first in sorted({int(share * layers) for share in FIRST_SHARES}):
        strength = ((torch.arange(layers) >= first) & ~empty).float()[:, None].expand(-1, len(COMPONENTS))
        best = first + int(score[position, first:].argmax())
        name = f"{estimator}, {what} from {first} up, position {-1 - position}"
        plan = plan_from_rows(rows, strength)
        made.append(Candidate(name, "per-layer", estimator, -1 - position, first, plan, found[position, best], best))
    return made
