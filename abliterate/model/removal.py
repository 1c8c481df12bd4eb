"""What takes directions out of what a writer writes: how the component is read, and how it is taken out.

W' = W - alpha w (q W), with ``q`` [k, d_model] reading the component and ``w`` [d_model, k] taking it out. Without a norm behind
the writer q = R and w = R^T (Arditi et al. 2024, section 2.4); behind a norm that multiplies by gamma, q = R D and w = D^-1 R^T
with D = diag(gamma), so that what enters the stream, gamma * norm(W' x), has nothing along R.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.errors import InputError

# How much an oblique removal may lengthen a vector before the orthogonal one along gamma * r is taken instead.
MAX_STRETCH = 100.0


@dataclass(frozen=True)
class Removal:
    """``q`` reads the component along the directions, ``w`` takes it out; ``oblique`` says whether a norm made them differ."""

    q: Float[Tensor, "k d_model"]
    w: Float[Tensor, "d_model k"]
    scale: Float[Tensor, " d_model"] | None = None

    @property
    def oblique(self) -> bool:
        return self.scale is not None


def removal(rows: Float[Tensor, "k d_model"], gamma: Float[Tensor, " d_model"] | None = None) -> Removal:
    """What removes the orthonormal ``rows`` from what a writer puts into the stream through a norm's ``gamma`` (None: no norm).

    Where gamma is so small in places that D^-1 R^T would tear the weights apart, the span of gamma * r is projected out
    orthogonally, which is as exact. Gradients flow to the rows. Raises InputError where gamma leaves nothing of a direction.
    """
    wide = rows.double()
    span = torch.linalg.solve(wide @ wide.T, wide)  # the rows again, but for the rounding of their lengths
    if gamma is None:
        return Removal(wide, span.T.contiguous())
    scale = gamma.double()
    q = wide * scale
    lengths = q.norm(dim=-1)
    if not bool((lengths > 0).all()):
        raise InputError("a norm's weight is zero all along the direction, so its writer puts nothing there")
    w = (span / scale).T
    if not torch.isfinite(w).all() or float((w.norm(dim=0) * lengths).max()) > MAX_STRETCH:
        w = torch.linalg.pinv(q)
    return Removal(q, w.contiguous(), scale)
