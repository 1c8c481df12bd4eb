"""The subspace in which the target's categories differ from the baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

RANK = 3


def category_differences(
    target: Float[Tensor, "prompt *place d_model"], categories: Sequence[str], baseline: Float[Tensor, "*place d_model"]
) -> Float[Tensor, "*place category d_model"]:
    """The mean of each category's prompts minus the baseline mean, in the order of the category names.

    Each is scaled by the root of its share of the prompts, because the mean of a category with few prompts is mostly noise.
    """
    names = sorted(set(categories))
    rows = []
    for name in names:
        chosen = [i for i, own in enumerate(categories) if own == name]
        rows.append((target[chosen].double().mean(0) - baseline.double()) * (len(chosen) / len(categories)) ** 0.5)
    return torch.stack(rows, dim=-2).to(target.dtype)


def leading_rows(rows: Float[Tensor, "*place row d_model"], rank: int = RANK) -> Float[Tensor, "*place k d_model"]:
    """At most ``rank`` orthogonal rows that span most of what the rows span: right singular vectors times their singular values.

    The sign of each row agrees with the sum of the input rows.
    """
    wide = rows.double()
    _, lengths, axes = torch.linalg.svd(wide, full_matrices=False)
    scaled = (lengths[..., None] * axes)[..., :rank, :]
    side = (scaled * wide.sum(-2, keepdim=True)).sum(-1, keepdim=True)
    return torch.where(side < 0, -scaled, scaled).to(rows.dtype)


def within(vector: Float[Tensor, "*place d_model"], rows: Float[Tensor, "*place k d_model"]) -> Float[Tensor, "*place d_model"]:
    """The part of a vector that lies in the span of orthogonal rows. Rows of length zero are ignored."""
    wide, other = rows.double(), vector.double()
    weights = (wide @ other[..., None]).squeeze(-1) / wide.square().sum(-1).clamp_min(1e-30)
    return (weights[..., None] * wide).sum(-2).to(vector.dtype)
