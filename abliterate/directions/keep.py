"""Scoping: remove from a direction its part in the span of the keep sets' directions, so that ablating it leaves the keep sets alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.directions.keys import BASELINE, HARMLESS, TARGET, GroupKey
from abliterate.directions.separation import cohens_d, projections

# Values of λ to try, relative to the mean squared length of K's columns.
RIDGES = (0.0, 1e-3, 1e-2, 1e-1, 1.0)
_RANK = 1e-9  # relative to the largest singular value; smaller singular values count as zero


@dataclass(frozen=True)
class KeepSpace:
    """The keep sets' directions K at each place (position and activation index), as left singular vectors (``axes``) and singular values
    (``lengths``)."""

    axes: Float[Tensor, "*place d_model column"]
    lengths: Float[Tensor, "*place column"]

    @classmethod
    def of(cls, columns: Float[Tensor, "*place d_model column"]) -> KeepSpace:
        """From K's columns, which may be linearly dependent."""
        axes, lengths, _ = torch.linalg.svd(columns.double(), full_matrices=False)
        return cls(axes, lengths)

    @property
    def real_axes(self) -> Float[Tensor, "*place d_model column"]:
        """The axes, with zero columns for singular values that count as zero."""
        return self.axes * (self.lengths > _RANK * self.lengths.amax(-1, keepdim=True)).unsqueeze(-2)

    def at(self, position: int) -> KeepSpace:
        """The places of one position."""
        return KeepSpace(self.axes[position], self.lengths[position])

    def without(self, direction: Float[Tensor, "*place d_model"], ridge: float) -> Float[Tensor, "*place d_model"]:
        """r - K (KᵀK + λI)⁻¹ Kᵀ r at each place, in float64; λ is ``ridge`` times the mean squared length of K's columns there.

        If λ is zero, the result is orthogonal to K and the inverse is the pseudo-inverse, so linearly dependent columns add nothing.
        """
        squared = self.lengths.square()
        damped = squared + ridge * squared.mean(-1, keepdim=True)
        real = (self.lengths > _RANK * self.lengths.amax(-1, keepdim=True)) & (damped > 0)
        share = torch.where(real, squared / damped.clamp_min(1e-300), torch.zeros_like(squared))
        wide = direction.double()
        along = share * (self.axes.transpose(-1, -2) @ wide[..., None]).squeeze(-1)
        return (wide - (self.axes @ along[..., None]).squeeze(-1)).to(direction.dtype)


@dataclass(frozen=True)
class Scoping:
    """How one estimator's directions were scoped.

    ``plain``: the name of the estimate that was scoped. ``ridge``: λ relative to the mean squared length of K's columns. ``share``:
    |r'| / |r| at λ = 0, the part of r that is not shared with the keep sets; a larger λ leaves more, but the rest is shared. ``cosine``:
    between r and each keep set's direction at the same place. A place with a share below ``min_share`` gives no candidate."""

    plain: str
    sets: tuple[str, ...]
    ridge: float
    share: Float[Tensor, "position layer_plus_1"]
    cosine: Mapping[str, Float[Tensor, "position layer_plus_1"]]
    min_share: float

    @property
    def barred(self) -> Float[Tensor, "position layer_plus_1"] | Tensor:
        """The places where too little of the direction is left."""
        return self.share < self.min_share


def keep_columns(own: Sequence[Float[Tensor, "position layer_plus_1 d_model"]]) -> Float[Tensor, "position layer_plus_1 d_model column"]:
    """K at every place: each keep set's direction (its mean minus the harmless mean) there, and the one at the earliest collected position.

    A run with keep sets collects one position more than the template appends, so the earliest position is the end of the instruction.
    Kinds of refusal differ more there than at the template's last token.
    """
    return torch.stack([column for direction in own for column in (direction, direction[-1:].expand_as(direction))], dim=-1)


def middle(layer_plus_1: int) -> slice:
    """The activation indices of the middle half of the blocks; at least one."""
    layers = layer_plus_1 - 1
    first = layers // 4
    return slice(1 + first, 1 + max(3 * layers // 4, first + 1))


def best_ridge(
    direction: Float[Tensor, "layer_plus_1 d_model"], space: KeepSpace, val: Mapping[GroupKey, Tensor], sets: Sequence[str]
) -> float:
    """The ridge in ``RIDGES`` whose scoped direction separates target from baseline best and keep from harmless least, on val.

    The measure is Cohen's d at the last position, averaged over the middle layers and the keep sets. If ridges are equal, the first is
    returned. Zero if a set has no val vectors.
    """
    keep = [GroupKey("keep", keep_set=name) for name in sets]
    needed = [TARGET, BASELINE, HARMLESS, *keep]
    if not all(key in val for key in needed):
        return RIDGES[0]
    at = middle(direction.shape[0])
    last = {key: val[key][:, 0, at] for key in needed}
    among = KeepSpace(space.axes[at], space.lengths[at])

    def worth(ridge: float) -> float:
        along = {key: projections(vectors, among.without(direction[at], ridge)) for key, vectors in last.items()}
        wanted = cohens_d(along[TARGET], along[BASELINE])
        unwanted = torch.stack([cohens_d(along[key], along[HARMLESS]).abs() for key in keep]).mean(0)
        return float((wanted - unwanted).mean())

    return max(RIDGES, key=worth)


def cosine(one: Float[Tensor, "*place d_model"], other: Float[Tensor, "*place d_model"]) -> Float[Tensor, "*place"]:
    """The cosine between two vectors at each place; zero if one of them is zero."""
    wide, second = one.double(), other.double()
    lengths = (wide.norm(dim=-1) * second.norm(dim=-1)).clamp_min(1e-300)
    found: Tensor = (wide * second).sum(-1) / lengths
    return found.clamp(-1, 1).float()
