"""The direction of least-squares concept erasure."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.directions.estimators.covariance import shrunk_covariance


def leace(target: Float[Tensor, "target d_model"], baseline: Float[Tensor, "baseline d_model"]) -> Float[Tensor, " d_model"]:
    """Σ^(-1/2) Δ: the cross-covariance of the vectors with the two sets, whitened (Belrose et al. 2023, arXiv 2306.03819, theorem 4.2).

    LEACE erases a binary concept by x - Δ (Δᵀ Σ⁻¹ Δ)⁻¹ Δᵀ Σ⁻¹ (x - E x), where Δ is the difference of means and Σ the covariance of all
    vectors. This is an oblique projection: it reads along Σ⁻¹Δ and writes along Δ, so an edit of the weights can't apply it. In whitened
    coordinates Σ^(-1/2) x it is the orthogonal projection along Σ^(-1/2) Δ. Here that direction is removed orthogonally from the unwhitened
    vectors. It lies half-way between the difference of means (the written part) and LDA's direction (the read part). It does not erase what
    LEACE erases: a linear probe may still separate the sets. Σ is shrunk as in Ledoit and Wolf (2004).
    """
    both = torch.cat([target, baseline]).double()
    difference = target.double().mean(0) - baseline.double().mean(0)
    return shrunk_covariance(both - both.mean(0)).power(-0.5, difference).to(target.dtype)
