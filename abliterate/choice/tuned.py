"""The tuner's part of the choice: what it may begin with, and what it makes of that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from abliterate.choice.candidates import BY_EFFECT, FIRST_SHARES, Candidate, by_effect
from abliterate.choice.front import WEIGHTS, Point, Preference, ranked
from abliterate.choice.own_examples import replies_of
from abliterate.choice.scores import Scores
from abliterate.choice.tuning.descent import Settings, descend
from abliterate.choice.tuning.examples import Examples
from abliterate.choice.tuning.first_order import RIDGES, first_order, work_of
from abliterate.choice.tuning.measure import measure, measured_on, target_left
from abliterate.choice.tuning.metric import coordinates
from abliterate.choice.tuning.on_policy import OnPolicy
from abliterate.choice.tuning.parameters import Parameters
from abliterate.choice.tuning.state import Seen, Step
from abliterate.compute.passes import Model
from abliterate.compute.whole.below import first_edited
from abliterate.compute.whole.model import WholeModel, shared_below
from abliterate.config import RunConfig
from abliterate.model.edit import Edit
from abliterate.runs.resume import ResumeStore
from abliterate.terminal.progress import stage

STARTS = len(RIDGES) + 1  # how many candidates are measured on all val prompts: all first-order ones and the best estimated one
START = 1.0  # initial strength


def candidates_by_effect(
    model: Model, train: Examples, config: RunConfig, away: Tensor | None, store: ResumeStore
) -> tuple[list[Candidate], Float[Tensor, "layer d_model d_model"] | None]:
    """Per-layer candidates from first-order effects, one edit per ridge, and the first-order costs of directions by block, if there is
    memory for them."""
    assert isinstance(model, WholeModel)
    first = int(FIRST_SHARES[0] * model.folder.layers)
    store = store.of([replies_of(train), config.tune_directions, config.seed], [] if away is None else [away])
    state = store.state("first-order")
    if state is None:
        off = _off(away, -1, config)
        with stage("first-order effects (prompts)", work_of(model, train, first)) as advance:
            edits, costs = first_order(model, train, first, off, config.seed, advance)
        parts = {f"{part}/{i}": getattr(edit, part) for i, edit in enumerate(edits) for part in ("direction", "strength")}
        state = parts | ({} if costs is None else {"costs": costs}), None
        store.save_state("first-order", *state)
    edits = [Edit(state[0][f"direction/{i}"], state[0][f"strength/{i}"], "skip") for i in range(len(RIDGES))]
    made = by_effect([(f"ridge {ridge:g}", edit) for ridge, edit in zip(RIDGES, edits, strict=True) if edit.strength.any()], first)
    return made, state[0].get("costs")


def starts(scored: Sequence[tuple[Candidate, Scores]], how: Preference, max_kl: float | None = None) -> list[Candidate]:
    """Starting points for the tuner, the most promising first.

    Per-layer candidates only, if there are any, because one direction for all blocks is far from what the tuner ends at. They are ranked by
    what they remove for their drift, and not filtered, because the tuner changes both. The best first-order candidate and the best
    estimated one come before all others, because which of the two works better differs between models; then come the other first-order
    ones, which differ most in how far they move the keep prompts, and the scores do not see that."""
    worth = {id(c): _removal(Point(s.stays, 0.0, s.kl, 0.0, 0.0), how, max_kl) if s.finite else -math.inf for c, s in scored}
    own = [c for c, _ in scored if c.kind == "per-layer"] or [c for c, _ in scored]
    by_worth = sorted(own, key=lambda c: -worth[id(c)])
    firsts = {c.estimator == BY_EFFECT: c for c in reversed(by_worth)}
    return sorted(by_worth, key=lambda c: (c is not firsts[c.estimator == BY_EFFECT], c.estimator != BY_EFFECT))


def best_start(
    model: Model, shortlist: Sequence[Candidate], seen: Sequence[Seen], val: Examples, config: RunConfig, store: ResumeStore
) -> int:
    """The index of the candidate that the tuner starts from; ``seen`` are the measured ones as edits. Raises InputError if none is finite.

    If there are first-order candidates and estimated ones, the first of either kind replies to val prompts, and what each candidate leaves
    of the target is measured with the openings of these replies too: an edit may suppress the openings that are known while the model
    withholds with others."""
    ranked([each.point for each in seen], config.prefer, config.max_kl)
    firsts = {candidate.estimator == BY_EFFECT: each for candidate, each in reversed(list(zip(shortlist, seen, strict=True)))}
    points = [each.point for each in seen]
    if len(firsts) > 1:
        store = store.of(None, [t for each in seen for t in (each.edit.direction, each.edit.strength)])
        left = store.value("starts")
        if left is None:
            left = _left_by_replies(model, [each.edit for each in firsts.values()], seen, val)
            store.save_value("starts", left)
        points = [replace(point, target_left=its) for point, its in zip(points, left, strict=True)]
    return max(range(len(seen)), key=lambda i: _removal(points[i], config.prefer, config.max_kl))


def _left_by_replies(model: Model, replying: Sequence[Edit], seen: Sequence[Seen], val: Examples) -> list[float]:
    """What each edit leaves of the target, measured with the openings of the ``replying`` edits too."""
    heard = OnPolicy(model, val, val)
    with stage("replies of the starts (val)", len(replying)) as advance:
        for edit in replying:
            heard.on_val(edit)
            advance(1)
    if heard.val is val:
        return [each.point.target_left for each in seen]
    return target_left(model, [each.edit for each in seen], heard.val)


def _removal(point: Point, how: Preference, max_kl: float | None) -> float:
    """How much an edit removes for its cost; minus infinity if it breaks the outputs."""
    return float(point.removal(WEIGHTS[how], max_kl)) if point.finite else -math.inf


def _cost(point: Point, how: Preference, max_kl: float | None) -> float:
    """The cost of an edit; infinity if it breaks the outputs."""
    return float(point.cost(WEIGHTS[how], max_kl)) if point.finite else math.inf


def tuned(
    model: Model,
    train: Examples,
    val: Examples,
    start: Candidate,
    measured: Sequence[Seen],
    costs: Float[Tensor, "layer d_model d_model"] | None,
    config: RunConfig,
    away: Tensor | None,
    store: ResumeStore,
) -> tuple[list[Seen], list[Step], list[str]]:
    """Tune a candidate by gradients. Returns the edits ``measured`` before and those of the tuner, all steps, and a note if tuning ended
    early. What is left of the target is measured by all openings known in the end. ``costs``: the first-order costs of directions,
    which are the metric that they are turned in; None: only strengths are tuned."""
    assert isinstance(model, WholeModel)
    off = _off(away, start.position, config)
    learned = costs is not None
    basis = None if costs is None else coordinates(costs, start.edit.direction)
    parameters = Parameters.of(start.edit, min(START, config.strength), learned, config.strength, off, basis)
    settings = Settings(steps=config.tune_steps, seed=config.seed)
    below = shared_below(model, first_edited([start.edit]), measured_on(val))
    store = store.of([replies_of(train), config.prefer, config.max_kl])
    known = OnPolicy(model, train, val, store)
    with stage("tuning (steps, val measurements, replies)", settings.total + settings.looks + len(settings.weights)) as advance, below:
        seen, steps = descend(
            model,
            parameters,
            train,
            lambda edit: measure(model, [edit], known.val)[0],
            lambda point: _cost(point, config.prefer, config.max_kl),
            settings,
            advance,
            store,
            known.after,
        )
        seen = [*measured, *seen]
        if known.val is not val:
            left = target_left(model, [each.edit for each in seen], known.val)
            seen = [replace(each, point=replace(each.point, target_left=its)) for each, its in zip(seen, left, strict=True)]
    why = parameters.ended()
    notes = [] if why is None else [f"tuning ended at step {len(steps)} of {settings.total}: {why}"]
    if not learned and config.tune_directions != "off":
        notes.append("only strengths were tuned, because there is too little memory to turn directions")
    return seen, steps, notes


def _off(away: Tensor | None, position: int, config: RunConfig) -> Float[Tensor, "layer n d_model"] | None:
    """Rows that the directions must stay orthogonal to; None if they may turn freely."""
    return away[-1 - position].transpose(-1, -2) if away is not None and config.tune_directions == "scoped" else None
