"""The edit itself, as pure functions of tensors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def orthogonalise(weight: Tensor, rows: Float[Tensor, "k d_model"], strength: float, axis: int) -> Tensor:
    """W' = W - alpha R^T (R W), with d_model on ``axis`` of W; in float32, returned in float32 (float64 stays float64).

    ``rows`` R are k orthonormal directions. Works for a matrix or a bias (Arditi et al. 2024, section 2.4).
    """
    wide = weight.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    basis = rows.to(wide.dtype)
    moved = wide.movedim(axis, 0).reshape(wide.shape[axis], -1)
    edited = moved - strength * (basis.T @ (basis @ moved))
    shape = wide.movedim(axis, 0).shape
    return edited.reshape(shape).movedim(0, axis).contiguous()


def component_along(weight: Tensor, rows: Float[Tensor, "k d_model"], axis: int) -> float:
    """Frobenius norm of R W, the part of a writer that lies along the directions; float64."""
    moved = weight.to(torch.float64).movedim(axis, 0).reshape(weight.shape[axis], -1)
    return float((rows.to(torch.float64) @ moved).norm())
