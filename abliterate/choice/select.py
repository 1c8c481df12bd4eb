"""The choice of the edit, on val prompts: candidates scored by cause, then strengths tuned by gradients or searched for.

Nothing is generated here but short replies of the unedited model, and nothing is known of the test prompts.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from blake3 import blake3
from jaxtyping import Float
from torch import Tensor

from abliterate.choice.candidates import BY_EFFECT, FIRST_SHARES, KINDS, Candidate, Kind, by_effect, candidates, scoped_document
from abliterate.choice.front import WEIGHTS, Point, Preference, pareto, prefer
from abliterate.choice.method import TuningMethod
from abliterate.choice.openings import dealt
from abliterate.choice.scores import Scores, Yardstick, asked_of, score_all, scoring_work
from abliterate.choice.search import search
from abliterate.choice.shortlist import Choice, choose, finite, selection_document
from abliterate.choice.space import Space
from abliterate.choice.tuning.descent import Settings, descend
from abliterate.choice.tuning.examples import Examples, Stay, examples_of, examples_work
from abliterate.choice.tuning.first_order import RIDGES, first_order, work_of
from abliterate.choice.tuning.measure import measure, measured_on, measuring_work
from abliterate.choice.tuning.parameters import Parameters
from abliterate.choice.tuning.probed import heard, save_replies
from abliterate.choice.tuning.replies import distinct, outcome_of, short_replies, withholds
from abliterate.choice.tuning.state import Seen, Step
from abliterate.compute.forward import Continued
from abliterate.compute.passes import Intervention, Model, no_progress
from abliterate.compute.whole.below import first_changed
from abliterate.compute.whole.model import WholeModel, shared_below
from abliterate.config import RunConfig
from abliterate.directions.estimate import Directions
from abliterate.errors import InputError
from abliterate.model.chat.template import encode
from abliterate.model.edit import Edit
from abliterate.prompts import Prompt, Role, RoleSets
from abliterate.prompts.promptset import Split, evenly
from abliterate.runs.resume import NO_STORE, ResumeStore
from abliterate.terminal.progress import say, stage

Prompts = Mapping[Role, Sequence[Prompt]]
RANKED_BY = 24  # val prompts of each role, for the scores by cause; the shortlist is measured on all
SHORTLIST = 4  # candidates that are measured
STARTS = 2  # of them, where the tuner follows
SHARES = (1.0, 0.85, 0.7)  # of the strength, where it isn't tuned
BATCH = 8  # edits that the search measures in one reading of the weights
START = 0.5  # the strength at which the tuner begins


def select(
    model: Model,
    sets: RoleSets,
    config: RunConfig,
    directions: Directions,
    how: TuningMethod,
    away: Tensor | None = None,
    kept: ResumeStore = NO_STORE,
) -> tuple[Edit, dict[str, Any]]:
    """The chosen edit, strengths included, and the content of ``selection.json``; train and val prompts only.

    ``away`` [position, layer, d_model, n]: the keep sets' axes, which tuned directions may have to stay orthogonal to. ``kept``: work that
    is done already, of this model with these sets and this config; it isn't done again. Raises InputError where the model withholds none
    of the target's prompts.
    """
    prompts, notes = _prompts(sets, "val"), []
    val = _gathered(model, sets, "val", kept)
    learned = _gathered(model, sets, "train", kept) if how == "gradient" else val
    if unknown := val.unknown + (learned.unknown if learned is not val else 0):
        notes.append(f"{unknown} train or val replies are in a language that the rules don't know: neither withheld nor answered")
    kept = kept.of(_replies_of(val))
    kinds: tuple[Kind, ...] = ("per-layer",) if how == "gradient" else KINDS
    effects = _by_effect(model, learned, config, away, kept) if how == "gradient" and config.tune_directions != "off" else []
    estimated = candidates(directions, config.candidates, config.max_layer, config.embedding, model.folder.tied, kinds, not effects)
    tried = [*effects, *estimated]
    scored, base_logprob = _scored(model, tried, val, prompts, how, kept)
    choice = choose(scored, config.max_kl, SHORTLIST)
    ranked = starts(scored, config.prefer, config.max_kl) if how == "gradient" else [scored[i][0] for i in choice.passing]
    shortlist, shares = ranked[: STARTS if how == "gradient" else SHORTLIST], SHARES if how == "off" else SHARES[:1]
    seen = _measured(model, shortlist, shares, val, config, kept)
    start = shortlist[_start(seen, config) if how == "gradient" else _best(seen, config)[0] // len(shares)]
    steps: list[Step] = []
    if how == "gradient":
        more, steps, ended = _tuned(model, learned, val, start, config, away, kept)
        seen += more
        notes += ended
    elif how == "search":
        seen += _searched(model, shortlist, val, config)
    best, relaxed = _best(seen, config)
    if config.norms == "keep":
        notes.append("lengths of columns are kept in the weights alone: figures on val are without it")
    filtered = () if how == "gradient" else choice.relaxed  # where the tuner begins goes through no filter
    chosen = next(i for i, (c, _) in enumerate(scored) if c is start)
    document = _document(scored, replace(choice, chosen=chosen, relaxed=(*notes, *filtered, *relaxed)), seen, best, steps, how, config)
    document["yardstick"] = {"asked": val.target.asked, "withheld": val.target.withheld, "base_logprob": base_logprob}
    document["scoped"] = scoped_document(directions, start)
    if away is not None:
        document["scoped"]["along_keep"] = _along_keep(seen[best].edit, away[-1 - start.position])
    document["tuning"] |= {"examples": dict(learned.counts), **_shape(seen[best].edit, start.edit)}
    point = seen[best].point
    said = f"chosen: {seen[best].name}: {100 * point.target_left:.1f} % left, KL {point.kl:.3f} nats (val)"
    say("; relaxed: ".join([said, *document["relaxed"]]))
    return replace(seen[best].edit, keep_norms=config.norms == "keep"), document


def _prompts(sets: RoleSets, split: Split) -> Prompts:
    return {role: sets.prompts(role, split) for role in sets.played}


def _gathered(model: Model, sets: RoleSets, split: Split, kept: ResumeStore) -> Examples:
    """The examples of a split; what the probe has heard is not asked again. Raises InputError where nothing is withheld."""
    prompts = _prompts(sets, split)
    asked = distinct(prompts)
    replies, predicted = heard(kept, split)
    missing = {role: each for role, each in asked.items() if role not in replies}
    work = examples_work(prompts, replies, predicted)
    what = "the model's own short replies" if missing else "predictions along short replies"
    with stage(f"{what} ({split})", work) if work else nullcontext(no_progress) as advance:
        if missing:
            replies |= short_replies(model, missing, advance)
            save_replies(kept, split, replies)
        _check_withheld(model, sets, split, prompts["target"], replies["target"])
        return examples_of(model, prompts, advance, replies, predicted, measured=split == "val")


def _check_withheld(model: Model, sets: RoleSets, split: Split, target: Sequence[Prompt], replies: Sequence[Sequence[int]]) -> None:
    """Raises InputError where none of the replies withholds: an edit would then be made against the openings of answers."""
    outcomes = [outcome_of(model.tokenizer, prompt, reply) for prompt, reply in zip(target, replies, strict=True)]
    if any(map(withholds, outcomes)):
        return
    names = ", ".join(group.name for group in sets.sets("target"))
    found = ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in Counter(outcomes).most_common())
    raise InputError(
        f"--target {names}: the model withholds none of its {len(target)} {split} prompts (short replies: {found}), so there is nothing to "
        "remove; ask the model with audit first, and take a target that it withholds"
    )


def _replies_of(examples: Examples) -> list[Sequence[Sequence[int]]]:
    """Everything that examples were made of: prompts, openings, what should stay."""
    return [examples.target.prompts, examples.target.openings, *(stay.asked.continuations for stay in examples.stays.values())]


def _by_effect(model: Model, train: Examples, config: RunConfig, away: Tensor | None, kept: ResumeStore) -> list[Candidate]:
    """A direction a block by its first-order effect, one edit for each ridge."""
    assert isinstance(model, WholeModel)
    first = int(FIRST_SHARES[0] * model.folder.layers)
    kept = kept.of([_replies_of(train), config.tune_directions, config.seed], [] if away is None else [away])
    state = kept.state("first-order")
    if state is None:
        off = _off(away, -1, config)
        with stage("first-order effects (prompts)", work_of(model, train, first)) as advance:
            edits = first_order(model, train, first, off, config.seed, advance)
        state = {f"{part}/{i}": getattr(edit, part) for i, edit in enumerate(edits) for part in ("direction", "strength")}, None
        kept.save_state("first-order", *state)
    edits = [Edit(state[0][f"direction/{i}"], state[0][f"strength/{i}"], "skip") for i in range(len(RIDGES))]
    return by_effect([(f"ridge {ridge:g}", edit) for ridge, edit in zip(RIDGES, edits, strict=True) if edit.strength.any()], first)


def _off(away: Tensor | None, position: int, config: RunConfig) -> Float[Tensor, "layer n d_model"] | None:
    """What the directions have to stay orthogonal to; None where they may turn anywhere."""
    return away[-1 - position].transpose(-1, -2) if away is not None and config.tune_directions == "scoped" else None


def _scored(
    model: Model, tried: Sequence[Candidate], val: Examples, prompts: Prompts, how: TuningMethod, kept: ResumeStore
) -> tuple[list[tuple[Candidate, Scores]], float]:
    """Each candidate with its scores by cause, and the unedited model's mean log-probability of its own openings. Where the tuner begins
    is chosen by what goes and what drifts alone, so nothing is asked of the baseline prompts."""
    withheld = Continued(evenly(val.target.prompts, RANKED_BY), evenly(val.target.openings, RANKED_BY))
    answered = Continued([], []) if how == "gradient" else _induced(model, val, prompts)
    by = Yardstick(withheld, answered, _led(val.stays["harmless"]))
    kept = kept.of([[c.name, c.shift_layer] for c in tried], [t for c in tried for t in (c.edit.direction, c.edit.strength, c.shift)])
    found = kept.value("scores")
    if found is None:
        below = shared_below(model, _first(c.edit for c in tried), asked_of(by))
        with stage("candidates scored by cause (prompts)", scoring_work(len(tried), by)) as advance, below:
            scores, base_logprob = score_all(model, tried, by, advance)
        found = [[asdict(each) for each in scores], base_logprob]
        kept.save_value("scores", found)
    return [(candidate, Scores(**each)) for candidate, each in zip(tried, found[0], strict=True)], found[1]


def _first(edits: Iterable[Edit]) -> int | float:
    """The first block that one of some edits changes."""
    return min(first_changed(Intervention(edit)) for edit in edits)


def _led(stay: Stay) -> list[list[int]]:
    """Prompts up to the first token that tells anything."""
    each = enumerate(zip(stay.asked.prompts, stay.asked.continuations, strict=True))
    return evenly([[*prompt, *reply[: stay.first(i)]] for i, (prompt, reply) in each], RANKED_BY)


def _induced(model: Model, val: Examples, prompts: Prompts) -> Continued:
    """Baseline prompts with the openings that would withhold them."""
    encoded = encode(model.tokenizer, [p.text for p in prompts["baseline"]])
    return Continued(evenly(encoded, RANKED_BY), evenly(dealt(val.target, prompts["target"], prompts["baseline"]), RANKED_BY))


def _measured(
    model: Model, shortlist: Sequence[Candidate], shares: Sequence[float], val: Examples, config: RunConfig, kept: ResumeStore
) -> list[Seen]:
    """The best candidates at shares of the strength, candidate after candidate."""
    tried = [(c, config.strength * share) for c in shortlist for share in shares]
    edits = [candidate.edit.scaled(strength) for candidate, strength in tried]
    kept = kept.of(None, [t for edit in edits for t in (edit.direction, edit.strength)])
    found = kept.value("points")
    if found is None:
        below = shared_below(model, _first(edits), measured_on(val))
        with stage("the best candidates measured (prompts)", len(edits) * measuring_work(val)) as advance, below:
            found = [asdict(point) for point in measure(model, edits, val, advance)]
        kept.save_value("points", found)
    return [Seen(f"{c.name}, strength {s:g}", 0, 0.0, edit, Point(**p)) for (c, s), edit, p in zip(tried, edits, found, strict=True)]


def starts(scored: Sequence[tuple[Candidate, Scores]], how: Preference, max_kl: float | None = None) -> list[Candidate]:
    """Where the tuner may begin, the likeliest to be good first: with a direction of its own a block, since one for all is a long way from
    what it comes to; ranked by what is removed for what drifts, not filtered, since the tuner is about to change both. The best by effect
    and the best that is estimated come before all others: which of the two acts differs from model to model."""
    worth = {id(c): _removal(Point(s.stays, 0.0, s.kl, 0.0, 0.0), how, max_kl) if s.finite else -math.inf for c, s in scored}
    own = [c for c, _ in scored if c.kind == "per-layer"] or [c for c, _ in scored]
    ranked = sorted(own, key=lambda c: -worth[id(c)])
    firsts = {c.estimator == BY_EFFECT: c for c in reversed(ranked)}
    return sorted(ranked, key=lambda c: c is not firsts[c.estimator == BY_EFFECT])


def _start(seen: Sequence[Seen], config: RunConfig) -> int:
    """Of edits that were measured on val, the one that the tuner begins with. Raises InputError where none is finite."""
    _best(seen, config)
    return max(range(len(seen)), key=lambda i: _removal(seen[i].point, config.prefer, config.max_kl))


def _removal(point: Point, how: Preference, max_kl: float | None) -> float:
    """What an edit removes for what it costs; worse than nothing where it breaks the outputs."""
    return float(point.removal(WEIGHTS[how], max_kl)) if point.finite else -math.inf


def _cost(point: Point, how: Preference, max_kl: float | None) -> float:
    """What an edit costs; infinitely much where it breaks the outputs."""
    return float(point.cost(WEIGHTS[how], max_kl)) if point.finite else math.inf


def _best(seen: Sequence[Seen], config: RunConfig) -> tuple[int, list[str]]:
    return prefer([each.point for each in seen], config.prefer, config.max_kl)


def _tuned(
    model: Model, train: Examples, val: Examples, start: Candidate, config: RunConfig, away: Tensor | None, kept: ResumeStore
) -> tuple[list[Seen], list[Step], list[str]]:
    """The way that gradients take from a candidate; and where it ended early, why."""
    assert isinstance(model, WholeModel)
    off = _off(away, start.position, config)
    learned = config.tune_directions != "off"
    parameters = Parameters.of(start.edit, min(START, config.strength), learned, config.strength, off)
    settings = Settings(steps=config.tune_steps, seed=config.seed)
    below = shared_below(model, _first([start.edit]), measured_on(val))
    with stage("tuning (steps and looks)", settings.total + settings.looks) as advance, below:
        seen, steps = descend(
            model,
            parameters,
            train,
            lambda edit: measure(model, [edit], val)[0],
            lambda point: _cost(point, config.prefer, config.max_kl),
            settings,
            advance,
            kept.of([_replies_of(train), config.prefer, config.max_kl]),
        )
    why = parameters.ended()
    return seen, steps, [] if why is None else [f"tuning ended at step {len(steps)} of {settings.total}: {why}"]


def _searched(model: Model, shortlist: Sequence[Candidate], val: Examples, config: RunConfig) -> list[Seen]:
    """What a search without gradients tried."""
    space = Space(shortlist, model.folder.layers, config.max_layer)
    with stage("edits searched (prompts)", config.trials * measuring_work(val)) as advance:
        found = search(
            space,
            lambda edits: measure(model, [edit.scaled(config.strength) for edit in edits], val, advance),
            config.trials,
            BATCH,
            config.seed,
            config.study,
            f"edits-{_measured_on(model, val, shortlist, config)}",
        )
    return [Seen(f"trial {t.number}", t.number, 0.0, t.edit.scaled(config.strength), t.point) for t in found]


def _measured_on(model: Model, val: Examples, shortlist: Sequence[Candidate], config: RunConfig) -> str:
    """What makes points comparable: two machines share a study where they measure the same edits of the same model on the same replies."""
    rows = [[round(x, 2) for x in c.edit.direction.flatten()[:: max(1, c.edit.direction.numel() // 64)].tolist()] for c in shortlist]
    facts = [
        model.folder.config.to_dict(),
        [[list(ids) for ids in each] for each in _replies_of(val)],
        rows,
        config.strength,
        config.embedding,
    ]
    return str(blake3(json.dumps([*facts, config.dtype], sort_keys=True, default=str).encode()).hexdigest(8))


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
        {"name": s.name, "step": s.step, "weight": s.weight, **finite(asdict(s.point)), "on_front": on, "chosen": i == best}
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
    """What would have been taken without the bound on KL, where that is another edit."""
    free = seen[prefer([each.point for each in seen], config.prefer)[0]]
    if free is seen[best]:
        return []
    left = f"{100 * free.point.target_left:.1f} % left, KL {free.point.kl:.3g} nats"
    return [f"without --max-kl {config.max_kl:g}, {free.name} would be taken: {left}"]


def _along_keep(edit: Edit, axes: Float[Tensor, "layer d_model n"]) -> float:
    """How much of what is removed lies in the keep sets' own span: the mean length of the rows' projections, over blocks with strength."""
    lengths = torch.einsum("lckd,ldn->lckn", edit.direction, axes).norm(dim=-1).mean(-1)
    return float(lengths[edit.strength > 0].mean()) if edit.strength.any() else 0.0


def _shape(edit: Edit, start: Edit) -> dict[str, Any]:
    """The strengths of an edit by layer and component, and the cosine of its directions with those of ``start`` (of spans: the least)."""
    if edit.direction.shape != start.direction.shape:
        return {"strength": edit.strength.tolist(), "cosine_to_start": None}
    overlap = torch.linalg.svdvals((edit.direction @ start.direction.transpose(-1, -2)).double())
    return {"strength": edit.strength.tolist(), "cosine_to_start": overlap[..., -1].clamp(max=1).tolist()}
