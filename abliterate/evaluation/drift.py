"""How far the edited model moved on harmless prompts."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def kl_divergence(base: Float[Tensor, "prompt vocab"], edited: Float[Tensor, "prompt vocab"]) -> Float[Tensor, " prompt"]:
    """KL(base‖edited) in nats of two rows of log-probabilities, row by row, summed in float64."""
    p = base.double()
    terms = torch.where(p > -torch.inf, p.exp() * (p - edited.double()), torch.zeros_like(p))
    return terms.sum(-1).clamp(min=0).float()
