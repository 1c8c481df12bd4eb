"""The difference of means."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def difference_of_means(target: Float[Tensor, "*n d_model"], baseline: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
    """mean(target) - mean(baseline), for every position and layer at once (Arditi et al. 2024, section 2.3)."""
    return target - baseline
