"""Coordinates of directions in which a length is a drift, so that the tuner turns directions by how much that changes the model.

The residual stream is far from isotropic: some dimensions carry thousands of times the variance of others (Sun et al. 2024, arXiv
2402.17762). A small turn of a direction towards such a dimension removes much more of the stream than the direction did. In coordinates in
which the squared length of a direction is its first-order drift, steps on the unit sphere are steps along the natural gradient (Amari
1998). But there, a small turn of a direction that drifts much can be a large turn of the direction itself, towards dimensions that hardly
drift. So the squared length is the drift as a share of the start's, plus the squared length in the stream: a small turn changes neither by
much.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from scipy.linalg.lapack import dpstrf
from torch import Tensor

RIDGE = 1e-2  # as a share of the mean of the eigenvalues that are not zero; the middle one of ``first_order.RIDGES``
_ZERO = 1e-10  # eigenvalues below this share of the largest diagonal entry are rounding errors


def damped(cost: Float[Tensor, "d_model d_model"], ridge: float) -> Float[Tensor, "d_model d_model"]:
    """The symmetric part of ``cost``, plus ``ridge`` times the mean of its eigenvalues that are not zero, scaled so that this mean is 1.

    The mean is over the rank, not the width, so that a stream with unused dimensions gives the same directions. Zero if ``cost`` is.
    """
    symmetric = (cost.double() + cost.double().T) / 2
    trace = float(symmetric.trace())
    if trace <= 0:
        return torch.zeros_like(symmetric)
    rank = dpstrf(symmetric.numpy(), tol=_ZERO * float(symmetric.diagonal().max()))[2]
    made: Tensor = symmetric * (float(rank) / trace) + ridge * torch.eye(len(symmetric), dtype=torch.float64)
    return made


def coordinates(
    cost: Float[Tensor, "layer d_model d_model"], start: Float[Tensor, "layer component k d_model"]
) -> Float[Tensor, "layer d_model d_model"]:
    """For each block, the upper triangular matrix B with B'(C + λI)B = 1: a vector u of coordinates is the direction Bu. The identity if C
    is zero. λ is the mean r'Cr of the block's unit rows r in ``start``, or ``RIDGE`` if that is less, because so few tokens leave C
    undetermined below."""
    made = torch.eye(cost.shape[-1]).repeat(len(cost), 1, 1)
    for block, own, rows in zip(made, cost, start, strict=True):
        if own.any():
            c, r = damped(own, 0.0), rows.flatten(0, 1).double()
            ridge = max(RIDGE, float((r @ c * r).sum(-1).mean()))
            factor = torch.linalg.cholesky(c + ridge * torch.eye(len(c), dtype=torch.float64))
            unit = torch.eye(len(own), dtype=torch.float64)
            block.copy_(torch.linalg.solve_triangular(factor.T, unit, upper=True))
    return made
