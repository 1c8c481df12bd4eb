"""The candidate edits: one direction for all blocks, or one direction per block from some block up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.config import DEFAULT_ESTIMATORS
from abliterate.directions.estimate import Directions
from abliterate.directions.interpolated import interpolated
from abliterate.model.edit import Edit, EmbeddingPolicy, edit_from_direction, edit_from_rows, resolve_embedding
from abliterate.model.layouts import COMPONENTS

Kind = Literal["single", "interpolated", "per-layer"]
KINDS: tuple[Kind, ...] = ("single", "interpolated", "per-layer")
# Per-layer edits start at these shares of the depth.
FIRST_SHARES = (0.25, 1 / 3, 0.5)
BY_EFFECT = "first-order effect"  # stands in place of an estimator's name
_EMPTY = 1e-5  # relative to the longest row; a shorter row counts as zero


@dataclass(frozen=True)
class Candidate:
    """One edit to try.

    ``layer`` is the block whose direction is used (the lower of two if interpolated), or the first block of a per-layer edit. ``shift``
    is the vector, not normalised, that activation addition adds after block ``shift_layer``.
    """

    name: str
    kind: Kind
    estimator: str
    position: int
    layer: int
    edit: Edit
    shift: Float[Tensor, " d_model"]
    shift_layer: int


def candidates(
    directions: Directions,
    count: int,
    max_layer_share: float,
    policy: EmbeddingPolicy,
    tied: bool,
    kinds: Sequence[Kind] = KINDS,
    by_language: bool = True,
) -> list[Candidate]:
    """The ``count`` best-separating single-layer edits, divided among the estimators, and the per-layer edits at the best position.

    Kind ``interpolated`` adds one edit per estimator, with the direction half-way between its best block and the better neighbour of that
    block. If directions are scoped, a position and block is skipped when too little of the direction is left there. ``by_language`` also
    adds per-layer edits that remove the directions of all languages, if there are such directions.
    """
    made: list[Candidate] = []
    names = directions.competing
    best = {name: _single(directions, name, max(1, count // len(names)), max_layer_share, policy, tied) for name in names}
    if "single" in kinds:
        made += [candidate for name in names for candidate in best[name]]
    if "interpolated" in kinds:
        made += [between for name in names for between in _between(directions, name, best[name][:1], max_layer_share, policy, tied)]
    if "per-layer" in kinds:
        for name in names:
            made += _per_layer(directions, name, [name])
        for name in names:
            own = list(directions.by_language.get(name, {}).values())
            made += _per_layer(directions, name, own) if own and by_language else []
    return made


def by_effect(made: Sequence[tuple[str, Edit]], first: int) -> list[Candidate]:
    """Per-layer candidates from first-order effects instead of an estimator; ``made`` holds a label and an edit for each."""
    found = []
    for said, edit in made:
        best = int(edit.strength.any(-1).int().argmax())
        name = f"{BY_EFFECT}, a direction a block from {first} up, {said}"
        found.append(Candidate(name, "per-layer", BY_EFFECT, -1, first, edit, edit.direction[best, 0, 0], best))
    return found


def at_most(count: int, layers: int, languages: int, estimators: int = len(DEFAULT_ESTIMATORS), kinds: Sequence[Kind] = KINDS) -> int:
    """The most edits that ``candidates`` returns, if ``languages`` languages have their own directions."""
    each: dict[Kind, int] = {
        "single": max(1, count // estimators),
        "interpolated": 1,
        "per-layer": len({int(share * layers) for share in FIRST_SHARES}) * (2 if languages else 1),
    }
    return estimators * sum(each[kind] for kind in kinds)


def _scores(directions: Directions, name: str) -> Float[Tensor, "position layer"]:
    """Cohen's d of each block's direction; minus infinity if scoping left too little of it."""
    score = directions.cohens_d[name][:, 1:].clone()
    if name in directions.scoping:
        score[directions.scoping[name].barred[:, 1:]] = -torch.inf
    return score


def _single(
    directions: Directions,
    estimator: str,
    count: int,
    max_layer_share: float,
    policy: EmbeddingPolicy,
    tied: bool,
) -> list[Candidate]:
    found, score = directions.direction[estimator], _scores(directions, estimator)
    layers = score.shape[1]
    score[:, int(max_layer_share * layers) :] = -torch.inf
    made: list[Candidate] = []
    for flat in score.flatten().argsort(descending=True).tolist():
        position, layer = divmod(flat, layers)
        if len(made) == count or score[position, layer] == -torch.inf:
            break
        if any(abs(c.layer - layer) < 2 for c in made):  # adjacent blocks give nearly the same edit
            continue
        vector = found[position, layer + 1]
        if vector.norm() == 0:
            continue
        edit = edit_from_direction(vector, layers, policy=policy, tied=tied)
        if estimator in directions.rows:
            edit = _everywhere(directions.rows[estimator][position, layer + 1], layers, policy, tied)
        name = f"{estimator}, block {layer}, position {-1 - position}"
        made.append(Candidate(name, "single", estimator, -1 - position, layer, edit, vector, layer))
    return made


def _everywhere(rows: Float[Tensor, "k d_model"], layers: int, policy: EmbeddingPolicy, tied: bool) -> Edit:
    """An edit that removes the span of the rows from every writer. Rows of length zero are ignored."""
    lengths = rows.norm(dim=-1)
    real = rows[lengths > _EMPTY * lengths.amax()]
    edit = edit_from_rows(real.expand(layers, -1, -1), torch.ones(layers, len(COMPONENTS)))
    return replace(edit, embedding=resolve_embedding(policy, True, tied))


def _between(
    directions: Directions,
    estimator: str,
    best: Sequence[Candidate],
    max_layer_share: float,
    policy: EmbeddingPolicy,
    tied: bool,
) -> list[Candidate]:
    """For each of the ``best`` single edits, an edit with the direction half-way to the better neighbouring block."""
    score, found = _scores(directions, estimator), directions.direction[estimator]
    layers = score.shape[1]
    made: list[Candidate] = []
    for one in best:
        position = -1 - one.position
        beside = [i for i in (one.layer - 1, one.layer + 1) if 0 <= i < int(max_layer_share * layers) and score[position, i] > -torch.inf]
        if not beside or estimator in directions.rows:
            continue
        low = min(one.layer, max(beside, key=lambda i: float(score[position, i])))
        vector = interpolated(found[position], low + 1.5)
        if vector.norm() == 0:
            continue
        name = f"{estimator}, between blocks {low} and {low + 1}, position {one.position}"
        edit = edit_from_direction(vector, layers, policy=policy, tied=tied)
        made.append(Candidate(name, "interpolated", estimator, one.position, low, edit, vector, one.layer))
    return made


def _per_layer(directions: Directions, estimator: str, removed: Sequence[str]) -> list[Candidate]:
    """Edits that remove, in each block from some block up, the span of that block's ``removed`` estimates: one, one per language, or the
    rows of a subspace."""
    found, score = directions.direction[estimator][:, 1:], _scores(directions, estimator)
    layers = found.shape[1]
    upper = score[:, layers // 3 :]
    position = int(upper.masked_fill(upper == -torch.inf, torch.nan).nanmean(1).nan_to_num(-torch.inf).argmax())
    rows = torch.stack([directions.direction[name][position, 1:] for name in removed], dim=1)
    if removed == [estimator] and estimator in directions.rows:
        rows = directions.rows[estimator][position, 1:]
    lengths = rows.norm(dim=-1)
    empty = (lengths <= _EMPTY * lengths.amax()).any(-1)  # a row of length zero: leave this block unedited
    empty |= score[position] == -torch.inf
    rows = torch.where(empty[:, None, None], torch.eye(rows.shape[1], rows.shape[2]), rows)
    what = "a direction a block" if len(removed) == 1 else "a direction a language and block"
    made: list[Candidate] = []
    for first in sorted({int(share * layers) for share in FIRST_SHARES}):
        strength = ((torch.arange(layers) >= first) & ~empty).float()[:, None].expand(-1, len(COMPONENTS))
        if not strength.any():
            continue
        best = first + int(score[position, first:].argmax())
        name = f"{estimator}, {what} from {first} up, position {-1 - position}"
        edit = edit_from_rows(rows, strength)
        made.append(Candidate(name, "per-layer", estimator, -1 - position, first, edit, found[position, best], best))
    return made
