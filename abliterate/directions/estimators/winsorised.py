"""Winsorised vectors: clamp a few huge coordinates ("massive activations") to the size of the next largest."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

QUANTILE = 0.995


def winsorised(vectors: Float[Tensor, "*n d_model"], quantile: float = QUANTILE) -> Float[Tensor, "*n d_model"]:
    """Clamp each vector's coordinates to plus or minus the ``quantile`` of their absolute values (linear interpolation).

    Massive activations (Sun et al. 2024, arXiv 2402.17762) are a handful of coordinates thousands of times larger than the others, which
    dominate a mean over few prompts. Heretic clamps in the same way, for each prompt and layer.
    """
    width = vectors.shape[-1]
    at = quantile * (width - 1)
    low = math.floor(at)
    largest = vectors.abs().topk(width - low, dim=-1).values.double()  # sorted, the largest first
    upper = largest[..., -2] if width - low > 1 else largest[..., -1]
    bound = torch.lerp(largest[..., -1], upper, at - low)[..., None].to(vectors.dtype)
    return vectors.clamp(-bound, bound)
