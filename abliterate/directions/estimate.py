"""Every direction of a run, estimated on train and scored on val."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.config import DEFAULT_ESTIMATORS
from abliterate.directions.activations import Activations
from abliterate.directions.collect import SetActivations
from abliterate.directions.estimators.sample import Sample
from abliterate.directions.estimators.subspace import leading_rows, within
from abliterate.directions.estimators.table import TABLE
from abliterate.directions.keep import KEEP, SCOPED, KeepSpace, Scoping, best_ridge, cosine, keep_columns
from abliterate.directions.separation import auc, cohens_d, projections
from abliterate.errors import CheckError, InputError

_FLAT = 1e-6  # relative to the stream's length: below it the two sets do not differ


@dataclass(frozen=True)
class Directions:
    """Every estimate and how well it separates the val prompts, by position (last token first) and activation index.

    Some estimates are of the first positions only. ``rows`` are the orthogonal rows of those that are subspaces, whose ``direction`` is the
    difference of means within. Where there are keep sets, ``scoping`` says how the directions called ``<estimator>, scoped`` were made.
    """

    direction: Mapping[str, Float[Tensor, "_position layer_plus_1 d_model"]]
    auc: Mapping[str, Float[Tensor, "_position layer_plus_1"]]
    cohens_d: Mapping[str, Float[Tensor, "_position layer_plus_1"]]
    rows: Mapping[str, Float[Tensor, "_position layer_plus_1 k d_model"]] = field(default_factory=dict)
    scoping: Mapping[str, Scoping] = field(default_factory=dict)

    @property
    def estimators(self) -> list[str]:
        """The names of the estimates, but for those of one language."""
        return [name for name in self.direction if "@" not in name]

    @property
    def competing(self) -> list[str]:
        """The names of those that edits are made of: the scoped ones, where there are keep sets."""
        return list(self.scoping) or self.estimators


def estimate(
    activations: Activations,
    estimators: Sequence[str] = DEFAULT_ESTIMATORS,
    min_share: float = 0.0,
    ridges: Mapping[str, float] | None = None,
) -> Directions:
    """All directions of the named estimators at all positions and layers, scoped too where there are keep sets.

    ``ridges``: those to scope with, by name; default: the best on val. Raises InputError where target and baseline do not differ at all,
    or an estimator needs prompts that were not collected.
    """
    sample = sample_of(activations)
    if float((sample.difference.norm(dim=-1) / sample.baseline_mean.norm(dim=-1).clamp_min(1e-30)).max()) < _FLAT:
        raise InputError("target and baseline prompts give the same activations: there is no direction between them")
    found: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    for name in estimators:
        if TABLE[name].harmless and sample.harmless_mean is None:
            raise InputError(f"the estimator {name} needs the activations of harmless prompts too; collect them (--keep, or --harmless)")
        made = TABLE[name].function(sample)
        if made.ndim == 4:
            rows[name] = made
            made = within(sample.difference[: len(made)], made)
        found[name] = made
    for lang in languages(activations.train):
        own = sample_of(activations, f"@{lang}")
        found |= {f"{name}@{lang}": TABLE[name].function(own) for name in estimators if TABLE[name].rank == 1}
    scoping = _scope(activations, found, rows, min_share, ridges)
    at = {name: tuple(projections(activations.val[role][:, : len(r)], r) for role in ("target", "baseline")) for name, r in found.items()}
    return Directions(
        direction=found,
        auc={name: auc(t, b) for name, (t, b) in at.items()},
        cohens_d={name: cohens_d(t, b) for name, (t, b) in at.items()},
        rows=rows,
        scoping=scoping,
    )


def _scope(
    activations: Activations, found: dict[str, Tensor], rows: dict[str, Tensor], min_share: float, ridges: Mapping[str, float] | None
) -> dict[str, Scoping]:
    """Adds the scoped version of every direction; how they were made, but for those of one language, which go as the one of all does."""
    own = keep_directions(activations)
    if not own:
        return {}
    space = KeepSpace.of(keep_columns(list(own.values())))
    scoping: dict[str, Scoping] = {}
    for name, direction in list(found.items()):
        estimator, at, lang = name.partition("@")
        scoped, positions = estimator + SCOPED, len(direction)
        here = KeepSpace(space.axes[:positions], space.lengths[:positions])
        if not at:
            ridge = best_ridge(direction[0], space.at(0), activations.val, list(own)) if ridges is None else ridges[scoped]
            left = here.without(direction, 0.0)
            share = (left.double().norm(dim=-1) / direction.double().norm(dim=-1).clamp_min(1e-300)).float()
            alike = {set_: cosine(direction, keep[:positions]) for set_, keep in own.items()}
            scoping[scoped] = Scoping(tuple(own), ridge, share, alike, min_share)
        found[scoped + at + lang] = here.without(direction, scoping[scoped].ridge)
        if name in rows:
            each = [here.without(rows[name][..., row, :], scoping[scoped].ridge) for row in range(rows[name].shape[-2])]
            rows[scoped] = leading_rows(torch.stack(each, dim=-2))
    return scoping


def check_separable(directions: Directions, min_share: float) -> None:
    """Raises CheckError where the scoped directions keep less than ``min_share`` of the plain ones wherever these separate well.

    That is wherever Cohen's d on val is at least half of its best. Elsewhere a direction is mostly noise, of which much is left always.
    """
    best = {}
    for scoped, scoping in directions.scoping.items():
        separation = directions.cohens_d[scoped.removesuffix(SCOPED)][:, 1:]
        used = separation >= 0.5 * separation.max()
        best[scoped] = float(scoping.share[:, 1:][used].max()), used
    if not best or max(share for share, _ in best.values()) >= min_share:
        return
    scoped = max(best, key=lambda name: best[name][0])
    alike = ", ".join(f"{set_} {float(c[:, 1:][best[scoped][1]].abs().max()):.2f}" for set_, c in directions.scoping[scoped].cosine.items())
    raise CheckError(
        f"not separable here: what target and keep sets share is nearly all of the direction; at most {best[scoped][0]:.0%} of it is left "
        f"({scoped}), less than --min-share {min_share:.0%}; cosine with the keep directions: up to {alike}"
    )


def languages(groups: Iterable[str]) -> list[str]:
    """The languages that have groups of their own."""
    return sorted({name.partition("@")[2] for name in groups if "@" in name})


def sample_of(activations: Activations, part: str = "") -> Sample:
    """What the estimators are given, of all prompts or of a ``part`` of them (``@en``)."""
    target, baseline = activations.train["target" + part], activations.train["baseline" + part]
    harmless = activations.train.get("harmless")
    return Sample(
        target.mean,
        baseline.mean,
        None if harmless is None else harmless.mean,
        target.last,
        baseline.last,
        None if harmless is None else harmless.last,
        tuple(activations.categories) if not part else (),
    )


def keep_sets(train: Mapping[str, SetActivations]) -> list[str]:
    """The names of the keep sets that have statistics of their own."""
    return [name.removeprefix(KEEP) for name in train if name.startswith(KEEP)]


def keep_directions(activations: Activations) -> dict[str, Float[Tensor, "position layer_plus_1 d_model"]]:
    """Each keep set's own direction: its mean less the harmless mean, by the set's name. Raises InputError without harmless prompts."""
    sets = keep_sets(activations.train)
    if sets and "harmless" not in activations.train:
        raise InputError("the keep sets' own directions need the activations of harmless prompts too; collect them (--harmless)")
    return {name: activations.train[KEEP + name].mean - activations.train["harmless"].mean for name in sets}


def keep_axes(activations: Activations) -> Float[Tensor, "position layer d_model column"] | None:
    """Orthonormal axes of what the keep sets' own directions span at each position and block, zero columns where they span less; None
    where there are no keep sets."""
    own = keep_directions(activations)
    return KeepSpace.of(keep_columns(list(own.values()))).real_axes[:, 1:].float() if own else None
