"""Split the train prompts into two halves; estimate on each half and judge on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.directions.activations import Activations
from abliterate.directions.collect import SetActivations
from abliterate.directions.estimate import Directions, estimate
from abliterate.directions.keep import cosine
from abliterate.directions.keys import BASELINE, HARMLESS, TARGET

SEED = 0
_ROLES = (TARGET, BASELINE, HARMLESS)


def halves(activations: Activations) -> tuple[Activations, Activations] | None:
    """Two random halves of each set's train prompts, at the last position. Each half uses the vectors of the other half as val.

    None if a set has fewer than four prompts, or if its vectors were not stored.
    """
    draw = torch.Generator().manual_seed(SEED)
    taken = {key: found for key, found in activations.train.items() if key in _ROLES or key.keep_set is not None}
    if any(len(found.vectors) < 4 for found in taken.values()):
        return None
    order = {key: torch.randperm(len(found.vectors), generator=draw) for key, found in taken.items()}
    chosen = [{key: order[key][start::2].sort().values for key in taken} for start in (0, 1)]
    vectors = [{key: found.vectors[own[key], :1] for key, found in taken.items()} for own in chosen]
    made = []
    for own, other, indices in zip(vectors, reversed(vectors), chosen, strict=True):
        train = {key: SetActivations(v.double().mean(0).float(), v.double().square().mean(0).float(), v) for key, v in own.items()}
        categories = [activations.categories[i] for i in indices[TARGET].tolist()] if activations.categories else []
        made.append(Activations(train, other, (-1,), activations.hashes, tuple(categories)))
    return made[0], made[1]


def stability(activations: Activations, directions: Directions) -> dict[str, Float[Tensor, " layer_plus_1"]]:
    """For each direction, the cosine between the estimates of the two halves, at the last position; empty if there are no halves."""
    both = halves(activations)
    if both is None:
        return {}
    plain = [name for name in directions.estimators if name not in directions.scoping]
    ridges = {name: scoping.ridge for name, scoping in directions.scoping.items()}
    one, two = (estimate(half, plain, ridges=ridges) for half in both)
    return {name: cosine(one.direction[name][0], two.direction[name][0]) for name in directions.estimators}


def estimate_without_val(activations: Activations, estimators: Sequence[str]) -> Directions | None:
    """All directions at the last position, with scores on held-out prompts: each half is scored on the other, and the two are averaged.

    None if there are no halves.
    """
    both = halves(activations)
    if both is None:
        return None
    one, two = (estimate(half, estimators) for half in both)
    ridges = {name: scoping.ridge for name, scoping in one.scoping.items()}
    train = {
        key: replace(found, mean=found.mean[:1], second_moment=found.second_moment[:1], vectors=found.vectors[:, :1])
        for key, found in activations.train.items()
    }
    whole = estimate(replace(activations, train=train, val=both[0].val, positions=(-1,)), estimators, ridges=ridges)
    return replace(
        whole,
        auc={name: (one.auc.get(name, values) + two.auc.get(name, values)) / 2 for name, values in whole.auc.items()},
        cohens_d={name: (one.cohens_d.get(name, values) + two.cohens_d.get(name, values)) / 2 for name, values in whole.cohens_d.items()},
    )
