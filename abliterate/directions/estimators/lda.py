"""Fisher's linear discriminant."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.directions.estimators.covariance import shrunk_covariance


def lda(target: Float[Tensor, "target d_model"], baseline: Float[Tensor, "baseline d_model"]) -> Float[Tensor, " d_model"]:
    """S⁻¹(mean(target) - mean(baseline)), where S is the within-set covariance, shrunk as in Ledoit and Wolf (2004).

    The direction along which the two sets are farthest apart relative to their spread. Its length has no meaning. It is solved in the span
    of the vectors, so the cost is min(prompt, d_model)³.
    """
    wide, other = target.double(), baseline.double()
    within = torch.cat([wide - wide.mean(0), other - other.mean(0)])
    found = shrunk_covariance(within).power(-1.0, wide.mean(0) - other.mean(0))
    return found.to(target.dtype)
