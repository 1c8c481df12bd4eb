"""The content of selection.json: the chosen edit, and everything that was measured on val."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.choice.candidates import Candidate
from abliterate.choice.front import pareto, prefer
from abliterate.choice.gate import By, saved
from abliterate.choice.scores import Scores
from abliterate.choice.shortlist import Choice, finite, selection_document
from abliterate.choice.tuning.state import Seen, Step
from abliterate.config import RunConfig
from abliterate.model.edit import Edit


def edit_document(
    scored: Sequence[tuple[Candidate, Scores]],
    choice: Choice,
    seen: Sequence[Seen],
    best: int,
    replied: Mapping[int, By],
    steps: Sequence[Step],
    how: str,
    config: RunConfig,
) -> dict[str, Any]:
    """The content of selection.json: the candidates, the choice, and everything that was measured on val."""
    document = selection_document(scored, choice, config.max_kl, config.max_layer)
    on_front = pareto([each.point for each in seen])
    front = [
        {"name": s.name, "step": s.step, "weight": s.weight, **finite(asdict(s.point)), "on_front": on, "chosen": i == best}
        | {"replies": saved(replied[i]) if i in replied else None}
        for i, (s, on) in enumerate(zip(seen, on_front, strict=True))
    ]
    tuning = {
        "kind": how,
        "seed": config.seed,
        "steps": len(steps) or None,
        "prefer": config.prefer,
        "max_kl": config.max_kl,
        "given_up": _given_up(seen, best, config),
        "history": [
            finite({"step": s.step, "weight": s.weight, "target": s.target, **{str(r): kl for r, kl in s.stays.items()}, "edits": s.edits})
            for s in steps
        ],
        "front": front,
    }  # fmt: skip
    return document | {"name": seen[best].name, "strength": float(seen[best].edit.strength.max()), "tuning": tuning}


def _given_up(seen: Sequence[Seen], best: int, config: RunConfig) -> list[str]:
    """In words, which edit would be the cheapest without the bound on KL; empty if it is the chosen one or lies within the bound."""
    free = seen[prefer([each.point for each in seen], config.prefer)[0]]
    if free is seen[best] or free.point.kl <= config.max_kl:
        return []
    left = f"{100 * free.point.target_left:.1f} % left, KL {free.point.kl:.3g} nats"
    return [f"without --max-kl {config.max_kl:g}, {free.name} would be the cheapest: {left}"]


def along_keep(edit: Edit, axes: Float[Tensor, "layer d_model n"]) -> float:
    """How much of the removed directions lies in the span of the keep sets' directions: the mean length of the rows' projections onto it,
    over blocks and components with a strength above 0."""
    lengths = torch.einsum("lckd,ldn->lckn", edit.direction, axes).norm(dim=-1).mean(-1)
    return float(lengths[edit.strength > 0].mean()) if edit.strength.any() else 0.0


def shape(edit: Edit, start: Edit) -> dict[str, Any]:
    """The strengths of an edit by layer and component, and the cosine of its directions with the directions of ``start`` (the smallest
    principal cosine if there are several rows)."""
    if edit.direction.shape != start.direction.shape:
        return {"strength": edit.strength.tolist(), "cosine_to_start": None}
    overlap = torch.linalg.svdvals((edit.direction @ start.direction.transpose(-1, -2)).double())
    return {"strength": edit.strength.tolist(), "cosine_to_start": overlap[..., -1].clamp(max=1).tolist()}
