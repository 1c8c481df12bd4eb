"""What the tuner learns: a strength a block and component, and, where asked, the directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.model.edit import Edit


@dataclass
class Parameters:
    """``strength`` and ``vectors`` are what gradients flow to; the directions began at ``start``, and no strength exceeds ``most``.

    ``away`` [layer, n, d_model] are orthonormal rows that the directions stay orthogonal to (zero rows where there are fewer).
    """

    strength: Float[Tensor, "layer component"]
    vectors: Float[Tensor, "layer component k d_model"]
    start: Float[Tensor, "layer component k d_model"]
    most: float = 1.0
    away: Float[Tensor, "layer n d_model"] | None = None

    @classmethod
    def of(cls, edit: Edit, strength: float, directions: bool, most: float = 1.0, away: Tensor | None = None) -> Parameters:
        """Beginning with an edit's directions, at ``strength`` wherever the edit removes them; ``directions``: these are learned too."""
        where = (edit.strength > 0).float()
        made = cls(where * strength, edit.direction.clone(), edit.direction.clone(), most, away)
        made.settle()
        made.strength.requires_grad_()
        made.vectors.requires_grad_(directions)
        return made

    def edit(self) -> Edit:
        """The edit as it stands, with gradients; the embedding is left alone."""
        return Edit(orthonormal(self.vectors), self.strength, "skip")

    @torch.no_grad()
    def baked(self) -> Edit:
        """The edit as it stands, for good."""
        return Edit(orthonormal(self.vectors).clone(), self.strength.clone(), "skip")

    def tensors(self) -> list[Tensor]:
        """Everything that says where they are and where they may go."""
        return [self.strength, self.vectors, self.start, *([] if self.away is None else [self.away])]

    def ended(self) -> str | None:
        """Why no step can follow, in words; None where one can."""
        if not all(bool(torch.isfinite(each).all()) for each in (self.strength, self.vectors)):
            return "its gradients were not finite; try --dtype float32"
        return None if bool(self.strength.any()) else "no strength was left"

    def edits(self) -> Float[Tensor, ""]:
        """The sum of all strengths."""
        return self.strength.sum()

    def turned(self) -> Float[Tensor, ""]:
        """How far the directions have turned from where they began: the mean of 1 - cosine."""
        return (1 - torch.nn.functional.cosine_similarity(self.vectors, self.start, dim=-1)).mean()

    @torch.no_grad()
    def settle(self) -> None:
        """Bring everything back to where it may be: strengths into [0, most], directions off ``away`` and to length one."""
        self.strength.clamp_(0, self.most)
        self._take_off_away(self.vectors)
        self.vectors /= self.vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)

    @torch.no_grad()
    def settle_gradient(self) -> None:
        """Take out of the directions' gradient what ``settle`` would take back: a step is then as long as it is meant to be."""
        if self.vectors.grad is not None:
            self._take_off_away(self.vectors.grad)

    def _take_off_away(self, rows: Float[Tensor, "layer component k d_model"]) -> None:
        if self.away is not None:
            along = torch.einsum("lckd,lnd->lckn", rows, self.away)
            rows -= torch.einsum("lckn,lnd->lckd", along, self.away)


def orthonormal(vectors: Float[Tensor, "layer component k d_model"]) -> Float[Tensor, "layer component k d_model"]:
    """Rows of length one, orthogonal among each other where there are several (Gram-Schmidt in order; gradients flow)."""
    made: list[Tensor] = []
    for row in vectors.unbind(2):
        for before in made:
            row = row - (row * before).sum(-1, keepdim=True) * before
        made.append(row / row.norm(dim=-1, keepdim=True).clamp_min(1e-12))
    return torch.stack(made, dim=2)
