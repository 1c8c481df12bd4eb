"""The choice of the edit, on val prompts: candidates scored by cause, then strengths tuned by gradients or searched for.

Nothing is generated here but short replies of the unedited model, and nothing is known of the test prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from blake3 import blake3
from torch import Tensor

from abliterate.config import RunConfig
from abliterate.directions.candidates import Candidate, candidates, scoped_document
from abliterate.directions.causal import Scores, Yardstick, score_all, scoring_work
from abliterate.directions.estimate import Directions
from abliterate.directions.front import WEIGHTS, Preference, pareto, prefer
from abliterate.directions.search import search
from abliterate.directions.select import Choice, choose, selection_document
from abliterate.directions.space import Space
from abliterate.errors import InputError
from abliterate.evaluation.openings import dealt
from abliterate.model.forward import Continued
from abliterate.model.passes import Model
from abliterate.model.plan import EditPlan
from abliterate.model.resident import Resident
from abliterate.model.template import encode
from abliterate.progress import say, stage
from abliterate.prompts import Prompt, Role, RoleSets
from abliterate.prompts.promptset import spread
from abliterate.tuning.descent import Seen, Settings, Step, descend, looks
from abliterate.tuning.examples import Examples, gather, gathering_work
from abliterate.tuning.measure import measure, measuring_work
from abliterate.tuning.parameters import Parameters

Prompts = Mapping[Role, Sequence[Prompt]]
RANKED_BY = 24  # val prompts of each role, for the scores by cause; the shortlist is measured on all
SHORTLIST = 4  # candidates that are measured
SHARES = (1.0, 0.85, 0.7)  # of the strength, where it isn't tuned
BATCH = 8  # edits that the search measures in one reading of the weights
START = 0.5  # the strength at which the tuner begins


def select(
    model: Model, sets: RoleSets, config: RunConfig, directions: Directions, away: Tensor | None = None
) -> tuple[EditPlan, dict[str, Any]]:
    """The chosen plan, strengths included, and the content of ``selection.json``; train and val prompts only.

    ``away`` [position, layer, d_model, n]: the keep sets' axes, which tuned directions may have to stay orthogonal to.
    """
    prompts = _prompts(sets, "val")
    val = _gathered(model, prompts, "val")
    tried = candidates(directions, config.candidates, config.max_layer, config.embedding, model.folder.tied)
    scored, base_logprob = _scored(model, tried, val, prompts)
    choice, how = choose(scored, config.max_kl, SHORTLIST), _way(model, config)
    passing = [scored[i][0] for i in choice.passing[:SHORTLIST]]
    shortlist = starts(scored, config.prefer)[:SHORTLIST] if how == "gradient" else passing
    shares = SHARES if how == "off" else SHARES[:1]
    seen = _measured(model, shortlist, shares, val, config)
    start = shortlist[_best(seen, config)[0] // len(shares)]
    steps: list[Step] = []
    learned = val
    if how == "gradient":
        learned = _gathered(model, _prompts(sets, "train"), "train")
        more, steps = _tuned(model, learned, val, start, config, away)
        seen += more
    elif how == "search":
        seen += _searched(model, shortlist, val, config)
    best, relaxed = _best(seen, config)
    filtered = (
        choice.relaxed if any(start is c for c in passing) and how != "gradient" else ()
    )  # what the tuner begins with went through no filter
    choice = replace(choice, chosen=next(i for i, (c, _) in enumerate(scored) if c is start), relaxed=(*filtered, *relaxed))
    document = _document(scored, choice, seen, best, steps, how, config) | {
        "yardstick": {"asked": val.target.asked, "withheld": val.target.withheld, "base_logprob": base_logprob},
        "scoped": scoped_document(directions, start),
    }
    document["tuning"] |= {"examples": dict(learned.counts), **_shape(seen[best].plan, start.plan)}
    if not val.target.withheld:
        document["relaxed"].insert(0, "the model withholds none of the val prompts: its replies to all of them are the yardstick")
    point = seen[best].point
    say("; relaxed: ".join([f"chosen: {seen[best].name}: {point.target_left:.1%} left, KL {point.kl:.3f} (val)", *document["relaxed"]]))
    return replace(seen[best].plan, keep_norms=config.norms == "keep"), document


def _prompts(sets: RoleSets, split: Literal["train", "val"]) -> Prompts:
    roles: tuple[Role, ...] = ("target", "baseline", "harmless", *(("keep",) if sets.sets("keep") else ()))
    return {role: sets.prompts(role, split) for role in roles}


def _gathered(model: Model, prompts: Prompts, split: str) -> Examples:
    with stage(f"the model's own short replies ({split})", gathering_work(prompts)) as advance:
        return gather(model, prompts, advance)


def _scored(model: Model, tried: Sequence[Candidate], val: Examples, prompts: Prompts) -> tuple[list[tuple[Candidate, Scores]], float]:
    """Each candidate with its scores by cause, and the unedited model's mean log-probability of its own openings."""
    baseline, harmless = (encode(model.tokenizer, [p.text for p in prompts[role]]) for role in ("baseline", "harmless"))
    induced = dealt(val.target, prompts["target"], prompts["baseline"])
    asked = (val.target.prompts, val.target.openings), (baseline, induced)
    withheld, answered = (Continued(spread(ids, RANKED_BY), spread(replies, RANKED_BY)) for ids, replies in asked)
    by = Yardstick(withheld, answered, spread(harmless, RANKED_BY))
    with stage("candidates scored by cause (prompts)", scoring_work(len(tried), by)) as advance:
        scores, base_logprob = score_all(model, tried, by, advance)
    return list(zip(tried, scores, strict=True)), base_logprob


def _measured(model: Model, shortlist: Sequence[Candidate], shares: Sequence[float], val: Examples, config: RunConfig) -> list[Seen]:
    """The best candidates at shares of the strength, candidate after candidate."""
    tried = [(c, config.strength * share) for c in shortlist for share in shares]
    plans = [candidate.plan.scaled(strength) for candidate, strength in tried]
    with stage("the best candidates measured (prompts)", len(plans) * measuring_work(val)) as advance:
        points = measure(model, plans, val, advance)
    return [Seen(f"{c.name}, strength {s:g}", 0, 0.0, plan, p) for (c, s), plan, p in zip(tried, plans, points, strict=True)]


def starts(scored: Sequence[tuple[Candidate, Scores]], how: Preference) -> list[Candidate]:
    """Where the tuner may begin, the likeliest to be good first: with a direction of its own a block, since one for all is a long way from
    what it comes to; ranked by what stays and what drifts, not filtered, since it is about to change both."""
    cost = {id(c): scores.stays + WEIGHTS[how] * scores.kl for c, scores in scored}
    own = [c for c, _ in scored if c.kind == "per-layer"] or [c for c, _ in scored]
    return sorted(own, key=lambda c: cost[id(c)])


def _best(seen: Sequence[Seen], config: RunConfig) -> tuple[int, list[str]]:
    return prefer([each.point for each in seen], config.prefer, config.max_kl)


def _way(model: Model, config: RunConfig) -> str:
    """How the edit is improved on: ``auto`` is by gradients where the model is held whole on one device, else not at all."""
    whole = isinstance(model, Resident)
    if config.tune == "auto":
        if not whole:
            say("the model isn't held whole here, so the edit isn't tuned by gradients; --tune search does without them")
        return "gradient" if whole else "off"
    if config.tune == "gradient" and not whole:
        raise InputError("--tune gradient needs the model whole in one process's memory; use --tune search, or give more --max-memory")
    return config.tune


def _tuned(
    model: Model, train: Examples, val: Examples, start: Candidate, config: RunConfig, away: Tensor | None
) -> tuple[list[Seen], list[Step]]:
    """The way that gradients take from a candidate."""
    assert isinstance(model, Resident)
    kept = away[-1 - start.position].transpose(-1, -2) if away is not None and config.tune_directions == "scoped" else None
    learned = config.tune_directions != "off"
    parameters = Parameters.of(start.plan, min(START, config.strength), learned, config.strength, kept)
    settings = Settings(steps=config.tune_steps, seed=config.seed)
    with stage("tuning (steps)", settings.total + len(looks(settings))) as advance:
        return descend(model, parameters, train, lambda plan: measure(model, [plan], val)[0], settings, advance)


def _searched(model: Model, shortlist: Sequence[Candidate], val: Examples, config: RunConfig) -> list[Seen]:
    """What a search without gradients tried."""
    space = Space(shortlist, model.folder.layers, config.max_layer)
    with stage("edits searched (prompts)", config.trials * measuring_work(val)) as advance:
        found = search(
            space,
            lambda plans: measure(model, [plan.scaled(config.strength) for plan in plans], val, advance),
            config.trials,
            BATCH,
            config.seed,
            config.study,
            f"edits-{_measured_on(model, val)}",
        )
    return [Seen(f"trial {t.number}", t.number, 0.0, t.plan.scaled(config.strength), t.point) for t in found]


def _measured_on(model: Model, val: Examples) -> str:
    """What makes points comparable: two machines share a study where they measure the same model on the same replies."""
    asked = [val.target.prompts, val.target.openings, *(stay.asked.continuations for stay in val.stays.values())]
    facts = [model.folder.config.to_dict(), [[list(ids) for ids in each] for each in asked]]
    return str(blake3(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest(8))


def _document(
    scored: Sequence[tuple[Candidate, Scores]],
    choice: Choice,
    seen: Sequence[Seen],
    best: int,
    steps: Sequence[Step],
    how: str,
    config: RunConfig,
) -> dict[str, Any]:
    """What selection.json says of candidates and choice, and of everything that was measured on val."""
    document = selection_document(scored, choice, config.max_kl, config.max_layer)
    on_front = pareto([each.point for each in seen])
    front = [
        {"name": s.name, "step": s.step, "weight": s.weight, **asdict(s.point), "on_front": on, "chosen": i == best}
        for i, (s, on) in enumerate(zip(seen, on_front, strict=True))
    ]
    tuning = {
        "kind": how,
        "seed": config.seed,
        "steps": len(steps) or None,
        "prefer": config.prefer,
        "max_kl": config.max_kl,
        "history": [
            {"step": s.step, "weight": s.weight, "target": s.target, **s.stays, "edits": s.edits} for s in steps
        ],
        "front": front,
    }  # fmt: skip
    return document | {"name": seen[best].name, "strength": float(seen[best].plan.strength.max()), "tuning": tuning}


def _shape(plan: EditPlan, start: EditPlan) -> dict[str, Any]:
    """The strengths of a plan by layer and component, and the cosine of its directions with those of ``start`` (of spans: the least)."""
    if plan.direction.shape != start.direction.shape:
        return {"strength": plan.strength.tolist(), "cosine_to_start": None}
    overlap = torch.linalg.svdvals((plan.direction @ start.direction.transpose(-1, -2)).double())
    return {"strength": plan.strength.tolist(), "cosine_to_start": overlap[..., -1].clamp(max=1).tolist()}
