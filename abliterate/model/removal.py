"""How directions are removed from what a writer writes: one factor reads the component along them, the other subtracts it.

W' = W - alpha w (q W), where ``q`` [k, d_model] reads the component and ``w`` [d_model, k] takes it out. If no norm follows the
writer, q = R and w = R^T (Arditi et al. 2024, section 2.4). If a norm follows that multiplies by gamma, q = R D and w = D^-1 R^T
with D = diag(gamma), so that what enters the stream, gamma * norm(W' x), has no component along R.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.errors import InputError

# How much an oblique removal may lengthen a vector; beyond that, gamma * r is projected out orthogonally instead.
MAX_STRETCH = 100.0


@dataclass(frozen=True)
class Removal:
    """``q`` reads the component along the directions, ``w`` takes it out; ``oblique``: whether a norm makes them differ."""

    q: Float[Tensor, "k d_model"]
    w: Float[Tensor, "d_model k"]
    scale: Float[Tensor, " d_model"] | None = None

    @property
    def oblique(self) -> bool:
        return self.scale is not None


def removal(rows: Float[Tensor, "k d_model"], gamma: Float[Tensor, " d_model"] | None = None) -> Removal:
    """The removal of the orthonormal ``rows`` from what a writer puts into the stream through a norm's ``gamma`` (None: no norm).

    If gamma is so small in places that D^-1 R^T would distort the weights, the span of gamma * r is projected out orthogonally,
    which is equally exact. Gradients flow to the rows. Raises InputError if gamma is zero all along a direction.
    """
    wide = rows.double()
    span = torch.linalg.solve(wide @ wide.T, wide)  # the rows themselves, except for rounding of their lengths
    if gamma is None:
        return Removal(wide, span.T.contiguous())
    scale = gamma.double()
    q = wide * scale
    lengths = q.norm(dim=-1)
    if not bool((lengths > 0).all()):
        raise InputError("a norm's weight is zero all along the direction, so its writer writes nothing along it")
    w = (span / scale).T
    if not torch.isfinite(w).all() or float((w.norm(dim=0) * lengths).max()) > MAX_STRETCH:
        w = torch.linalg.pinv(q)
    return Removal(q, w.contiguous(), scale)
