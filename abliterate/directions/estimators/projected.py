"""A direction without its component along another vector."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def projected(direction: Float[Tensor, "*n d_model"], away_from: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
    """The direction without its component along ``away_from``, row by row, so that ablating the result leaves ``away_from`` unchanged.

    If ``away_from`` is the mean of harmless prompts, ablating the result doesn't move that mean.
    """
    wide, other = direction.double(), away_from.double()
    along = (wide * other).sum(-1, keepdim=True) / other.square().sum(-1, keepdim=True).clamp_min(1e-30)
    return (wide - along * other).to(direction.dtype)
