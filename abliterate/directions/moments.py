"""Running statistics of vectors, in float64."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class RunningMoments:
    """Mean and (diagonal) second moment over prompts, of any trailing shape; exact to float64 summation."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self._sum = torch.zeros(shape, dtype=torch.float64)
        self._squares = torch.zeros(shape, dtype=torch.float64)

    def update(self, values: Float[Tensor, " prompt *shape"]) -> None:
        wide = values.to("cpu", torch.float64)
        self.count += wide.shape[0]
        self._sum += wide.sum(0)
        self._squares += wide.square().sum(0)

    def add(self, other: RunningMoments) -> None:
        """Add the counts and sums of another instance."""
        self.count += other.count
        self._sum += other._sum
        self._squares += other._squares

    def mean(self) -> Float[Tensor, "*shape"]:
        """Mean over the prompts seen, float32."""
        return (self._sum / self.count).float()

    def second_moment(self) -> Float[Tensor, "*shape"]:
        """Mean of squares over the prompts seen, float32."""
        return (self._squares / self.count).float()
