"""The records of selection.json: the chosen edit, and everything that was measured on val."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.choice.candidates import BY_EFFECT, Candidate
from abliterate.choice.front import pareto, prefer
from abliterate.choice.gate import By, saved
from abliterate.choice.method import TuningMethod
from abliterate.choice.records import CandidateScores, Filters, FrontPoint, RepliesOf, Scoped, TuningExamples, TuningRecord, TuningStep
from abliterate.choice.scores import Scores
from abliterate.choice.shortlist import MAX_SPILL, MAX_STAYS, Choice
from abliterate.choice.tuning.state import Seen, Step
from abliterate.config import RunConfig
from abliterate.directions.estimate import Directions
from abliterate.model.edit import Edit
from abliterate.prompts import Role


def candidate_record(tried: Candidate, scores: Scores) -> CandidateScores:
    """A candidate with its scores."""
    return CandidateScores(
        name=tried.name,
        kind=tried.kind,
        estimator=tried.estimator,
        position=tried.position,
        layer=tried.layer,
        bypass=_finite(scores.bypass),
        stays=_finite(scores.stays),
        induce=_finite(scores.induce),
        kl=_finite(scores.kl),
        spill=_finite(scores.spill),
    )


def filters_record(choice: Choice, config: RunConfig) -> Filters:
    """The filters for candidates, and the bound on KL that was finally in force."""
    return Filters(
        max_kl=config.max_kl,
        max_kl_in_force=choice.max_kl,
        max_layer=config.max_layer,
        max_stays=MAX_STAYS,
        max_spill=MAX_SPILL,
        induce="> 0",
    )


def tuning_record(
    seen: Sequence[Seen],
    best: int,
    replied: Mapping[int, By],
    steps: Sequence[Step],
    how: TuningMethod,
    config: RunConfig,
    start: Edit,
    counts: Mapping[Role, int],
) -> TuningRecord:
    """How the edits came about that were measured on val, and their figures. ``start``: the edit that tuning began with; ``counts``: how
    many examples of each role it learned from."""
    chosen = seen[best].edit
    on_front = pareto([each.point for each in seen])
    return TuningRecord(
        kind=how,
        seed=config.seed,
        steps=len(steps) or None,
        prefer=config.prefer,
        max_kl=config.max_kl,
        given_up=_given_up(seen, best, config),
        history=tuple(map(_step, steps)),
        front=tuple(_front_point(each, on_front[i], i == best, replied.get(i)) for i, each in enumerate(seen)),
        examples=TuningExamples(**{str(role): count for role, count in counts.items()}),
        strength=_pairs(chosen.strength),
        cosine_to_start=cosine_to_start(chosen, start),
    )


def _step(step: Step) -> TuningStep:
    stays: dict[str, float | None] = {role: _finite(loss) for role, loss in step.stays.items()}
    return TuningStep(step=step.step, weight=step.weight, target=_finite(step.target), edits=_finite(step.edits), **stays)


def _front_point(seen: Seen, on_front: bool, chosen: bool, replied: By | None) -> FrontPoint:
    point = seen.point
    return FrontPoint(
        name=seen.name,
        step=seen.step,
        weight=seen.weight,
        target_left=_finite(point.target_left),
        keep_kl=_finite(point.keep_kl),
        kl=_finite(point.kl),
        kl_sequence=_finite(point.kl_sequence),
        edits=_finite(point.edits),
        on_front=on_front,
        chosen=chosen,
        replies=None if replied is None else {role: RepliesOf(**figures) for role, figures in saved(replied).items()},
    )


def _given_up(seen: Sequence[Seen], best: int, config: RunConfig) -> tuple[str, ...]:
    """In words, which edit would be the cheapest without the bound on KL; empty if it is the chosen one or lies within the bound."""
    free = seen[prefer([each.point for each in seen], config.prefer)[0]]
    if free is seen[best] or free.point.kl <= config.max_kl:
        return ()
    left = f"{100 * free.point.target_left:.1f} % left, KL {free.point.kl:.3g} nats"
    return (f"without --max-kl {config.max_kl:g}, {free.name} would be the cheapest: {left}",)


def scoped_record(directions: Directions, start: Candidate, chosen: Edit, axes: Float[Tensor, "layer d_model n"] | None) -> Scoped | None:
    """How much of the directions that tuning began with scoping left, on average, and their cosine with each keep set's direction; both are
    null if no estimator made the directions. ``axes``: the keep sets' axes, to compare the edit with. None if there is no keep set."""
    if not directions.scoping:
        return None
    if start.estimator == BY_EFFECT:
        found = Scoped(sets=next(iter(directions.scoping.values())).sets, ridge=None, share_left=None, cosine=None)
    else:
        scoping = directions.scoping[start.estimator]
        edited = start.edit.strength.any(-1) if start.kind == "per-layer" else torch.arange(start.edit.layers) == start.layer
        position = -1 - start.position
        found = Scoped(
            sets=scoping.sets,
            ridge=scoping.ridge,
            share_left=float(scoping.share[position, 1:][edited].mean()),
            cosine={name: float(values[position, 1:][edited].mean()) for name, values in scoping.cosine.items()},
        )
    return found if axes is None else found.model_copy(update={"along_keep": along_keep(chosen, axes)})


def along_keep(edit: Edit, axes: Float[Tensor, "layer d_model n"]) -> float:
    """How much of the removed directions lies in the span of the keep sets' directions: the mean length of the rows' projections onto it,
    over blocks and components with a strength above 0."""
    lengths = torch.einsum("lckd,ldn->lckn", edit.direction, axes).norm(dim=-1).mean(-1)
    return float(lengths[edit.strength > 0].mean()) if edit.strength.any() else 0.0


def cosine_to_start(edit: Edit, start: Edit) -> tuple[tuple[float, float], ...] | None:
    """The cosine of an edit's directions with those of ``start``, by layer and component (the smallest principal cosine if there are
    several rows). None if they have different numbers of rows."""
    if edit.direction.shape != start.direction.shape:
        return None
    overlap = torch.linalg.svdvals((edit.direction @ start.direction.transpose(-1, -2)).double())
    return _pairs(overlap[..., -1].clamp(max=1))


def _pairs(figures: Float[Tensor, "layer component"]) -> tuple[tuple[float, float], ...]:
    """A figure of attention and one of the MLP for each layer."""
    return tuple((attention, mlp) for attention, mlp in figures.tolist())


def _finite(figure: float | None) -> float | None:
    """The figure, with None in place of NaN and infinity, which JSON can't hold."""
    return None if figure is None or not math.isfinite(figure) else figure
