"""The geometric median: a centre that a few outlying prompts can't move far."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

TOLERANCE = 1e-7  # stop when a step is shorter than this, relative to the spread of the vectors
STEPS = 1000


def geometric_median(vectors: Float[Tensor, "prompt *place d_model"]) -> Float[Tensor, "*place d_model"]:
    """The point with the smallest summed distance to the vectors, computed at each place in float64.

    Weiszfeld's iteration with the correction of Vardi and Zhang (2000, PNAS 97:1423) for points that coincide with the estimate.
    """
    places = vectors.flatten(1, -2)
    found = torch.stack([_median(places[:, place].double()) for place in range(places.shape[1])])
    return found.reshape(vectors.shape[1:]).to(vectors.dtype)


def _median(points: Float[Tensor, "point d_model"]) -> Float[Tensor, " d_model"]:
    """Iterate on weights: the estimate is a weighted sum of the points. Distances come from the Gram matrix, so a step costs point²
    regardless of d_model."""
    centre = points.mean(0)
    spread = points - centre
    gram = spread @ spread.T
    size = float(gram.diagonal().mean().sqrt())
    weights = torch.full((len(points),), 1 / len(points), dtype=torch.float64)
    if size <= 1e-12 * float(centre.norm()):
        return centre
    for _ in range(STEPS):
        after = _step(gram, weights, 1e-9 * size)
        moved = after - weights
        weights = after
        if float(moved @ gram @ moved) <= (TOLERANCE * size) ** 2:
            break
    return centre + weights @ spread


def _step(gram: Float[Tensor, "point point"], weights: Float[Tensor, " point"], near: float) -> Float[Tensor, " point"]:
    """The weights of the next estimate. Points closer than ``near`` to the current estimate count as coinciding with it."""
    along = gram @ weights
    distances = (gram.diagonal() - 2 * along + weights @ along).clamp_min(0).sqrt()
    apart = distances > near
    pull = torch.where(apart, 1 / distances.clamp_min(near), torch.zeros_like(distances))
    if not bool(apart.any()):
        return weights
    towards = pull / pull.sum()
    here = int((~apart).sum())
    if here == 0:
        return towards
    force = pull - pull.sum() * weights  # the points' unit pulls on the estimate, in weights
    strength = float((force @ gram @ force).clamp_min(0).sqrt())
    stay = min(1.0, here / strength) if strength > 0 else 1.0
    return (1 - stay) * towards + stay * weights
