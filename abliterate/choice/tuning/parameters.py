"""The parameters that the tuner learns: one strength per block and component and, if requested, the directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.model.edit import Edit


@dataclass
class Parameters:
    """Gradients flow to ``strength`` and ``vectors``. The directions start at ``start``, and no strength exceeds ``most``.

    ``basis`` [layer, d_model, d_model]: upper triangular matrices that turn ``vectors`` into directions (``metric.coordinates``); None:
    vectors are directions. ``away`` [layer, n, d_model]: orthonormal rows that the vectors stay orthogonal to, padded with zero rows.
    """

    strength: Float[Tensor, "layer component"]
    vectors: Float[Tensor, "layer component k d_model"]
    start: Float[Tensor, "layer component k d_model"]
    most: float = 1.0
    away: Float[Tensor, "layer n d_model"] | None = None
    basis: Float[Tensor, "layer d_model d_model"] | None = None

    @classmethod
    def of(
        cls,
        edit: Edit,
        strength: float,
        directions: bool,
        most: float = 1.0,
        away: Tensor | None = None,
        basis: Float[Tensor, "layer d_model d_model"] | None = None,
    ) -> Parameters:
        """Start from an edit's directions, at ``strength`` wherever the edit's own strength is above 0. ``directions``: learn these too.
        They stay orthogonal to ``away`` [layer, n, d_model]: orthonormal rows, padded with zero rows."""
        where = (edit.strength > 0).float()
        vectors = edit.direction.clone()
        if basis is not None:
            vectors = torch.linalg.solve_triangular(basis[:, None], vectors.transpose(-1, -2), upper=True).transpose(-1, -2)
            vectors = vectors / vectors.norm(dim=-1, keepdim=True)
            away = None if away is None else _spanning(away @ basis)
        made = cls(where * strength, vectors, vectors.clone(), most, away, basis)
        made.settle()
        made.strength.requires_grad_()
        made.vectors.requires_grad_(directions)
        return made

    def edit(self) -> Edit:
        """The current edit, with gradients. It does not change the embedding."""
        return Edit(orthonormal(self._directions()), self.strength, "skip")

    @torch.no_grad()
    def baked(self) -> Edit:
        """A copy of the current edit, without gradients."""
        return Edit(orthonormal(self._directions()).clone(), self.strength.clone(), "skip")

    def _directions(self) -> Float[Tensor, "layer component k d_model"]:
        return self.vectors if self.basis is None else torch.einsum("lckd,led->lcke", self.vectors, self.basis)

    def tensors(self) -> list[Tensor]:
        """All tensors that define the current values and their constraints."""
        return [each for each in (self.strength, self.vectors, self.start, self.away, self.basis) if each is not None]

    def ended(self) -> str | None:
        """Why no further step is possible, in words; None if one is."""
        if not all(bool(torch.isfinite(each).all()) for each in (self.strength, self.vectors)):
            return "the gradients were not finite; try --dtype float32"
        return None if bool(self.strength.any()) else "all strengths were zero"

    def edits(self) -> Float[Tensor, ""]:
        """The sum of all strengths."""
        return self.strength.sum()

    def turned(self) -> Float[Tensor, ""]:
        """How far the vectors have turned from their start: the mean of 1 - cosine."""
        return (1 - torch.nn.functional.cosine_similarity(self.vectors, self.start, dim=-1)).mean()

    @torch.no_grad()
    def settle(self) -> None:
        """Apply the constraints: clamp strengths to [0, most], make vectors orthogonal to ``away`` and of length one."""
        self.strength.clamp_(0, self.most)
        self._take_off_away(self.vectors)
        self.vectors /= self.vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)

    @torch.no_grad()
    def settle_gradient(self) -> None:
        """Remove the gradient components that ``settle`` would undo, so that a step has its intended length."""
        if self.vectors.grad is not None:
            self._take_off_away(self.vectors.grad)

    def _take_off_away(self, rows: Float[Tensor, "layer component k d_model"]) -> None:
        if self.away is not None:
            along = torch.einsum("lckd,lnd->lckn", rows, self.away)
            rows -= torch.einsum("lckn,lnd->lckd", along, self.away)


def _spanning(rows: Float[Tensor, "layer n d_model"]) -> Float[Tensor, "layer n d_model"]:
    """Orthonormal rows with the same span, padded with zero rows."""
    _, lengths, made = torch.linalg.svd(rows, full_matrices=False)
    real: Tensor = lengths > 1e-5 * lengths.amax(-1, keepdim=True).clamp_min(1e-12)
    return torch.where(real[..., None], made, 0)


def orthonormal(vectors: Float[Tensor, "layer component k d_model"]) -> Float[Tensor, "layer component k d_model"]:
    """Orthonormal rows per block and component (Gram-Schmidt in order; gradients flow)."""
    made: list[Tensor] = []
    for row in vectors.unbind(2):
        for before in made:
            row = row - (row * before).sum(-1, keepdim=True) * before
        made.append(row / row.norm(dim=-1, keepdim=True).clamp_min(1e-12))
    return torch.stack(made, dim=2)
