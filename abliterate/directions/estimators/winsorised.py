"""Winsorised vectors: a few coordinates of enormous size ("massive activations") are cut back to the size of the next ones."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

QUANTILE = 0.995


def winsorised(vectors: Float[Tensor, "*n d_model"], quantile: float = QUANTILE) -> Float[Tensor, "*n d_model"]:
    """Each vector with its coordinates clamped to plus or minus the ``quantile`` of its own coordinates' sizes (linear interpolation).

    Massive activations (Sun et al. 2024, arXiv 2402.17762) are a handful of coordinates thousands of times larger than the others;
    a mean over few prompts is then mostly theirs. Heretic clamps in the same way, prompt by prompt and layer by layer.
    """
    width = vectors.shape[-1]
    at = quantile * (width - 1)
    low = math.floor(at)
    largest = vectors.abs().topk(width - low, dim=-1).values.double()  # sorted, the largest first
    upper = largest[..., -2] if width - low > 1 else largest[..., -1]
    bound = torch.lerp(largest[..., -1], upper, at - low)[..., None].to(vectors.dtype)
    return vectors.clamp(-bound, bound)
