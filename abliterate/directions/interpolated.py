"""A direction between two layers."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def interpolated(direction: Float[Tensor, "*position layer_plus_1 d_model"], index: float) -> Float[Tensor, "*position d_model"]:
    """The direction at a fractional activation index: the linear mix of the two neighbouring unit directions (as in Heretic), scaled to the
    same mix of their lengths. Raises ValueError for an index outside the layers."""
    last = direction.shape[-2] - 1
    if not 0 <= index <= last:
        raise ValueError(f"index {index} is not within 0 and {last}")
    low = min(math.floor(index), last - 1) if last else 0
    pair = direction[..., [low, min(low + 1, last)], :].double()
    lengths = pair.norm(dim=-1, keepdim=True)
    units = pair / lengths.clamp_min(1e-30)
    share = torch.tensor([1 - (index - low), index - low], dtype=torch.float64)[:, None]
    mixed = (share * units).sum(-2)
    length = (share * lengths).sum(-2)
    made: Tensor = mixed / mixed.norm(dim=-1, keepdim=True).clamp_min(1e-30) * length
    return made.to(direction.dtype)
