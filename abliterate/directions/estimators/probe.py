"""A linear probe: logistic regression."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

PENALTY = 1e-3  # on |w|², for vectors with mean squared length one
STEPS, TOLERANCE = 100, 1e-10


def probe(
    target: Float[Tensor, "target d_model"], baseline: Float[Tensor, "baseline d_model"], penalty: float = PENALTY
) -> Float[Tensor, " d_model"]:
    """The weights w that minimise mean log(1 + exp(-y (w·x + b))) + penalty / 2 · s² |w|², where s² is the mean squared distance of the
    vectors from their mean. Newton's method in float64, in the span of the vectors (w lies in it), so the cost is min(prompt, d_model)³."""
    both = torch.cat([target, baseline]).double()
    centred = both - both.mean(0)
    u, s, vt = torch.linalg.svd(centred, full_matrices=False)
    size = float(centred.square().sum(1).mean().sqrt())
    kept = s > 1e-10 * s[0]
    if size == 0 or not bool(kept.any()):
        return torch.zeros_like(target[0])
    features = torch.cat([u[:, kept] * s[kept] / size, torch.ones(len(both), 1, dtype=torch.float64)], dim=1)
    sides = torch.cat([torch.ones(len(target)), torch.zeros(len(baseline))]).double()
    weights = _fitted(features, sides, penalty)
    found: Tensor = weights[:-1] @ vt[kept] / size
    return found.to(target.dtype)


def _fitted(features: Float[Tensor, "prompt feature"], sides: Float[Tensor, " prompt"], penalty: float) -> Float[Tensor, " feature"]:
    """Minimise the loss by Newton steps, each halved until the loss falls. The last feature (the intercept) is not penalised."""
    number, width = features.shape
    cost = torch.full((width,), penalty, dtype=torch.float64)
    cost[-1] = 0

    def loss(weights: Tensor) -> Tensor:
        margins = features @ weights
        return (torch.nn.functional.softplus(margins) - sides * margins).mean() + 0.5 * (cost * weights.square()).sum()

    weights = torch.zeros(width, dtype=torch.float64)
    before = loss(weights)
    for _ in range(STEPS):
        likely = torch.sigmoid(features @ weights)
        slope = features.T @ (likely - sides) / number + cost * weights
        curved = (features.T * (likely * (1 - likely))) @ features / number + torch.diag(cost.clamp_min(1e-12))
        step = torch.linalg.solve(curved, slope)
        fall, share = float(slope @ step), 1.0
        while share > 1e-6 and float(loss(weights - share * step)) > float(before) - 1e-4 * share * fall:
            share /= 2
        weights = weights - share * step
        before = loss(weights)
        if fall < TOLERANCE:
            break
    return weights
