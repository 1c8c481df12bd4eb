"""Covariance of few vectors in many dimensions, computed in the span of the vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_FLAT = 1e-10  # relative to the largest eigenvalue; smaller eigenvalues count as zero


@dataclass(frozen=True)
class Covariance:
    """Shrunk variances along orthonormal ``axes``; ``rest`` is the variance in every direction orthogonal to them."""

    axes: Float[Tensor, "axis d_model"]
    variances: Float[Tensor, " axis"]
    rest: float

    def power(self, exponent: float, vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
        """The covariance to the power ``exponent``, times a vector. If ``rest`` is zero, the part orthogonal to the axes is dropped."""
        inside = self.axes @ vector
        across = vector - inside @ self.axes
        scaled: Tensor = (self.variances**exponent * inside) @ self.axes
        return scaled + self.rest**exponent * across if self.rest > 0 else scaled


def shrunk_covariance(centred: Float[Tensor, "prompt d_model"]) -> Covariance:
    """The covariance of vectors with mean zero, shrunk towards a multiple of the identity (Ledoit and Wolf 2004).

    Exact, at a cost of min(prompt, d_model)³. Takes and returns float64.
    """
    number, width = centred.shape
    axes, variances = _principal(centred)
    mean = float(variances.sum()) / width
    squared = float(variances.square().sum())
    away = squared - width * mean**2  # ‖S - mean I‖²
    noise = (float(centred.square().sum(1).square().sum()) / number - squared) / number
    share = min(1.0, max(0.0, noise / away)) if away > 0 else 1.0
    return Covariance(axes, (1 - share) * variances + share * mean, share * mean)


def _principal(centred: Float[Tensor, "prompt d_model"]) -> tuple[Float[Tensor, "axis d_model"], Float[Tensor, " axis"]]:
    """Orthonormal axes along which the vectors vary, and the variances, from whichever is smaller of X Xᵀ and Xᵀ X."""
    number, width = centred.shape
    if number < width:
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        kept = values > _FLAT * values[-1].clamp_min(1e-300)
        axes = (centred.T @ (vectors[:, kept] / values[kept].sqrt())).T
    else:
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        kept = values > _FLAT * values[-1].clamp_min(1e-300)
        axes = vectors[:, kept].T
    return axes, values[kept] / number
