"""The input of an estimator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """Train statistics: means at every position (last token first), and each prompt's vectors at the last position.

    ``categories``: one per target prompt, in the same order. ``harmless`` and ``harmless_mean`` are None if they were not collected.
    """

    target_mean: Float[Tensor, "position layer_plus_1 d_model"]
    baseline_mean: Float[Tensor, "position layer_plus_1 d_model"]
    harmless_mean: Float[Tensor, "position layer_plus_1 d_model"] | None
    target: Float[Tensor, "target layer_plus_1 d_model"]
    baseline: Float[Tensor, "baseline layer_plus_1 d_model"]
    harmless: Float[Tensor, "harmless layer_plus_1 d_model"] | None
    categories: tuple[str, ...] = ()

    @property
    def difference(self) -> Float[Tensor, "position layer_plus_1 d_model"]:
        """The difference of means."""
        return self.target_mean - self.baseline_mean

    def by_layer(self, function: Callable[[Tensor, Tensor], Tensor]) -> Float[Tensor, "1 layer_plus_1 d_model"]:
        """Apply ``function`` to the target's and the baseline's vectors at each activation index. Each direction gets the length of the
        difference of means along it, so that adding it moves a baseline prompt to where the target prompts are."""
        found = torch.stack([function(self.target[:, index], self.baseline[:, index]) for index in range(self.target.shape[1])])
        wide, difference = found.double(), self.difference[0].double()
        along = (wide * difference).sum(-1, keepdim=True) / wide.square().sum(-1, keepdim=True).clamp_min(1e-300)
        return (along * wide).to(found.dtype)[None]
