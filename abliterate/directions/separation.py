"""How well a direction separates two sets of prompts. Pure functions of tensors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Vectors = Float[Tensor, "prompt *place d_model"]


def projections(vectors: Vectors, direction: Float[Tensor, "*place d_model"]) -> Float[Tensor, " prompt *place"]:
    """The coordinate of each prompt's vector along the unit direction at the same place; zero if the direction is zero."""
    length = direction.norm(dim=-1).clamp_min(1e-30)
    coordinates: Tensor = torch.einsum("n...d,...d->n...", vectors, direction) / length
    return coordinates


def auc(target: Float[Tensor, " prompt *place"], baseline: Float[Tensor, " other *place"]) -> Float[Tensor, "*place"]:
    """Probability that a target prompt projects higher than a baseline prompt (ties count half)."""
    pairs = target[:, None] - baseline[None]
    return ((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean((0, 1)).float()


def cohens_d(target: Float[Tensor, " prompt *place"], baseline: Float[Tensor, " other *place"]) -> Float[Tensor, "*place"]:
    """Difference of means over the pooled standard deviation."""
    pooled = ((target.var(0, correction=0) + baseline.var(0, correction=0)) / 2).sqrt()
    return (target.mean(0) - baseline.mean(0)) / torch.where(pooled > 0, pooled, torch.full_like(pooled, torch.inf))
