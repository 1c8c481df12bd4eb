"""Estimate every direction of a run on train prompts, and score it on val prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.config import DEFAULT_ESTIMATORS
from abliterate.directions.activations import Activations
from abliterate.directions.estimators.sample import Sample
from abliterate.directions.estimators.subspace import leading_rows, within
from abliterate.directions.estimators.table import TABLE
from abliterate.directions.keep import KeepSpace, Scoping, best_ridge, cosine, keep_columns
from abliterate.directions.keys import BASELINE, HARMLESS, TARGET, EstimateKey, GroupKey, by_language
from abliterate.directions.separation import auc, cohens_d, projections
from abliterate.errors import CheckError, InputError

_FLAT = 1e-6  # relative to the length of the residual stream; below this the two sets count as equal


@dataclass(frozen=True)
class Directions:
    """Every estimate and how well it separates the val prompts, by position (last token first) and activation index.

    Some estimates exist only for the first of these positions. ``rows`` holds the orthogonal rows of estimates that are subspaces; the
    ``direction`` of a subspace is the part of the difference of means that lies in it. If there are keep sets, ``scoping`` says how the
    directions named ``<estimator>, scoped`` were made. ``by_language``: by the name of an estimate, the names of its versions from the
    prompts in one language, by language.
    """

    direction: Mapping[str, Float[Tensor, "_position layer_plus_1 d_model"]]
    auc: Mapping[str, Float[Tensor, "_position layer_plus_1"]]
    cohens_d: Mapping[str, Float[Tensor, "_position layer_plus_1"]]
    rows: Mapping[str, Float[Tensor, "_position layer_plus_1 k d_model"]] = field(default_factory=dict)
    scoping: Mapping[str, Scoping] = field(default_factory=dict)
    by_language: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def estimators(self) -> list[str]:
        """The names of all estimates except those for one language."""
        of_one = {name for versions in self.by_language.values() for name in versions.values()}
        return [name for name in self.direction if name not in of_one]

    @property
    def competing(self) -> list[str]:
        """The names of the estimates that edits may use: the scoped ones if there are keep sets, else all."""
        return list(self.scoping) or self.estimators


def estimate(
    activations: Activations,
    estimators: Sequence[str] = DEFAULT_ESTIMATORS,
    min_share: float = 0.0,
    ridges: Mapping[str, float] | None = None,
) -> Directions:
    """All directions of the named estimators at all positions and layers, and their scoped versions if there are keep sets.

    ``ridges``: the ridge to scope with, by the name of the scoped estimate; default: the best on val. Raises InputError if target and
    baseline do not differ at all, or if an estimator needs prompts that were not collected.
    """
    sample = sample_of(activations)
    if float((sample.difference.norm(dim=-1) / sample.baseline_mean.norm(dim=-1).clamp_min(1e-30)).max()) < _FLAT:
        raise InputError("target and baseline prompts give the same activations: there is no direction between them")
    found: dict[EstimateKey, Tensor] = {}
    rows: dict[EstimateKey, Tensor] = {}
    for name in estimators:
        if TABLE[name].harmless and sample.harmless_mean is None:
            raise InputError(f"the estimator {name} needs the activations of harmless prompts too; collect them (--keep, or --harmless)")
        made = TABLE[name].function(sample)
        if made.ndim == 4:
            rows[EstimateKey(name)] = made
            made = within(sample.difference[: len(made)], made)
        found[EstimateKey(name)] = made
    for lang in sorted({key.lang for key in activations.train if key.lang is not None}):
        own = sample_of(activations, lang)
        found |= {EstimateKey(name, lang=lang): TABLE[name].function(own) for name in estimators if TABLE[name].rank == 1}
    scoping = _scope(activations, found, rows, min_share, ridges)
    at = {str(key): tuple(projections(activations.val[of][:, : len(r)], r) for of in (TARGET, BASELINE)) for key, r in found.items()}
    return Directions(
        direction={str(key): r for key, r in found.items()},
        auc={name: auc(t, b) for name, (t, b) in at.items()},
        cohens_d={name: cohens_d(t, b) for name, (t, b) in at.items()},
        rows={str(key): r for key, r in rows.items()},
        scoping=scoping,
        by_language=by_language(found),
    )


def _scope(
    activations: Activations,
    found: dict[EstimateKey, Tensor],
    rows: dict[EstimateKey, Tensor],
    min_share: float,
    ridges: Mapping[str, float] | None,
) -> dict[str, Scoping]:
    """Add the scoped version of every direction to ``found`` and ``rows``. Returns the scoping by name; directions of one language use the
    scoping of all languages and have no entry."""
    own = keep_directions(activations)
    if not own:
        return {}
    space = KeepSpace.of(keep_columns(list(own.values())))
    scoping: dict[str, Scoping] = {}
    for key, direction in list(found.items()):
        made, positions = replace(key, scoped=True), len(direction)
        scoped = str(made.of_all_languages)
        here = KeepSpace(space.axes[:positions], space.lengths[:positions])
        if key.lang is None:
            ridge = best_ridge(direction[0], space.at(0), activations.val, list(own)) if ridges is None else ridges[scoped]
            left = here.without(direction, 0.0)
            share = (left.double().norm(dim=-1) / direction.double().norm(dim=-1).clamp_min(1e-300)).float()
            alike = {set_: cosine(direction, keep[:positions]) for set_, keep in own.items()}
            scoping[scoped] = Scoping(str(key), tuple(own), ridge, share, alike, min_share)
        found[made] = here.without(direction, scoping[scoped].ridge)
        if key in rows:
            each = [here.without(rows[key][..., row, :], scoping[scoped].ridge) for row in range(rows[key].shape[-2])]
            rows[made] = leading_rows(torch.stack(each, dim=-2))
    return scoping


def check_separable(directions: Directions, min_share: float) -> None:
    """Raises CheckError if every scoped direction keeps less than ``min_share`` of the plain one wherever the plain one separates well.

    A direction separates well where Cohen's d on val is at least half of its best value. Elsewhere it is mostly noise, and scoping leaves
    most of any noise.
    """
    best = {}
    for scoped, scoping in directions.scoping.items():
        separation = directions.cohens_d[scoping.plain][:, 1:]
        used = separation >= 0.5 * separation.max()
        best[scoped] = float(scoping.share[:, 1:][used].max()), used
    if not best or max(share for share, _ in best.values()) >= min_share:
        return
    scoped = max(best, key=lambda name: best[name][0])
    alike = ", ".join(f"{set_} {float(c[:, 1:][best[scoped][1]].abs().max()):.2f}" for set_, c in directions.scoping[scoped].cosine.items())
    raise CheckError(
        f"not separable here: target and keep sets share nearly all of the direction; at most {best[scoped][0]:.0%} of it is left "
        f"({scoped}), less than --min-share {min_share:.0%}; cosine with the keep directions: up to {alike}"
    )


def sample_of(activations: Activations, lang: str | None = None) -> Sample:
    """The input of the estimators, from all prompts, or from those of target and baseline in one language."""
    target, baseline = activations.train[GroupKey("target", lang)], activations.train[GroupKey("baseline", lang)]
    harmless = activations.train.get(HARMLESS)
    return Sample(
        target.mean,
        baseline.mean,
        None if harmless is None else harmless.mean,
        target.last,
        baseline.last,
        None if harmless is None else harmless.last,
        tuple(activations.categories) if lang is None else (),
    )


def keep_directions(activations: Activations) -> dict[str, Float[Tensor, "position layer_plus_1 d_model"]]:
    """Each keep set's direction: its mean minus the harmless mean, by the name of the set. Raises InputError without harmless prompts."""
    sets = {key.keep_set: found for key, found in activations.train.items() if key.keep_set is not None}
    if sets and HARMLESS not in activations.train:
        raise InputError("the directions of the keep sets need the activations of harmless prompts too; collect them (--harmless)")
    return {name: found.mean - activations.train[HARMLESS].mean for name, found in sets.items()}


def keep_axes(activations: Activations) -> Float[Tensor, "position layer d_model column"] | None:
    """Orthonormal axes of the span of the keep sets' directions at each position and block, padded with zero columns; None if there are no
    keep sets."""
    own = keep_directions(activations)
    return KeepSpace.of(keep_columns(list(own.values()))).real_axes[:, 1:].float() if own else None
