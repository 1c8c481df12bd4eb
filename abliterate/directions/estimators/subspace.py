"""The subspace in which the categories of the target differ from the baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

RANK = 3


def category_differences(
    target: Float[Tensor, "prompt *place d_model"], categories: Sequence[str], baseline: Float[Tensor, "*place d_model"]
) -> Float[Tensor, "*place category d_model"]:
    """Mean of each category's prompts less the baseline's mean, in the order of the categories' names.

    Each is scaled by the root of its share of the prompts, so that a category of few prompts, whose mean is mostly noise, weighs little.
    """
    names = sorted(set(categories))
    rows = []
    for name in names:
        chosen = [i for i, own in enumerate(categories) if own == name]
        rows.append((target[chosen].double().mean(0) - baseline.double()) * (len(chosen) / len(categories)) ** 0.5)
    return torch.stack(rows, dim=-2).to(target.dtype)


def leading_rows(rows: Float[Tensor, "*place row d_model"], rank: int = RANK) -> Float[Tensor, "*place k d_model"]:
    """At most ``rank`` orthogonal rows that span most of what the rows span: right singular vectors, each as long as its singular value.

    Each points the way that the rows' sum does.
    """
    wide = rows.double()
    _, lengths, axes = torch.linalg.svd(wide, full_matrices=False)
    scaled = (lengths[..., None] * axes)[..., :rank, :]
    side = (scaled * wide.sum(-2, keepdim=True)).sum(-1, keepdim=True)
    return torch.where(side < 0, -scaled, scaled).to(rows.dtype)


def within(vector: Float[Tensor, "*place d_model"], rows: Float[Tensor, "*place k d_model"]) -> Float[Tensor, "*place d_model"]:
    """The part of a vector that lies in the span of orthogonal rows; rows of length zero span nothing."""
    wide, other = rows.double(), vector.double()
    weights = (wide @ other[..., None]).squeeze(-1) / wide.square().sum(-1).clamp_min(1e-30)
    return (weights[..., None] * wide).sum(-2).to(vector.dtype)
