"""Choose the edit on val prompts: score candidates causally, then tune strengths by gradients or by search.

The only text generated here is short replies to train and val prompts. Test prompts are never used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from blake3 import blake3
from torch import Tensor

from abliterate.choice.candidates import KINDS, Candidate, Kind, candidates
from abliterate.choice.document import candidate_record, filters_record, scoped_record, tuning_record
from abliterate.choice.front import Point, over_bound, ranked
from abliterate.choice.gate import GATED, By, gate_work, gated, loaded, passed, saved
from abliterate.choice.method import TuningMethod
from abliterate.choice.openings import dealt
from abliterate.choice.own_examples import Prompts, own_examples, prompts_of, replies_of
from abliterate.choice.records import Selection, YardstickRecord
from abliterate.choice.scores import Scores, Yardstick, asked_of, score_all, scoring_work
from abliterate.choice.search import search
from abliterate.choice.shortlist import choose
from abliterate.choice.space import Space
from abliterate.choice.tuned import STARTS, best_start, candidates_by_effect, starts, tuned
from abliterate.choice.tuning.examples import Examples, Stay
from abliterate.choice.tuning.measure import measure, measured_on, measuring_work
from abliterate.choice.tuning.state import Seen, Step
from abliterate.compute.forward import Continued
from abliterate.compute.passes import Model
from abliterate.compute.whole.below import first_edited
from abliterate.compute.whole.model import shared_below
from abliterate.config import RunConfig
from abliterate.directions.estimate import Directions
from abliterate.model.chat.template import encode
from abliterate.model.edit import Edit
from abliterate.prompts import RoleSets
from abliterate.prompts.promptset import evenly
from abliterate.runs.resume import NO_STORE, ResumeStore
from abliterate.terminal.progress import say, stage

RANKED_BY = 24  # val prompts per role for the causal scores; the shortlist is measured on all of them
SHORTLIST = 4  # how many candidates are measured on all val prompts
SHARES = (1.0, 0.85, 0.7)  # shares of --strength to try, if strengths are not tuned
BATCH = 8  # edits that the search measures in one pass over the weights


def select(
    model: Model,
    sets: RoleSets,
    config: RunConfig,
    directions: Directions,
    how: TuningMethod,
    away: Tensor | None = None,
    store: ResumeStore = NO_STORE,
) -> tuple[Edit, Selection]:
    """Returns the chosen edit with its strengths, and how it was chosen. Uses train and val prompts only.

    ``away`` [position, layer, d_model, n]: the keep sets' axes; tuned directions stay orthogonal to them with ``tune_directions="scoped"``.
    ``store`` holds finished work for this model, these sets and this config, which is not repeated. Raises InputError if the model
    withholds none of the target prompts.
    """
    prompts, notes = prompts_of(sets, "val"), []
    val = own_examples(model, sets, "val", store)
    learned = own_examples(model, sets, "train", store) if how == "gradient" else val
    if unknown := val.unknown + (learned.unknown if learned is not val else 0):
        notes.append(f"{unknown} train or val replies are in a language without rules and count as neither withheld nor answered")
    store = store.of(replies_of(val))
    kinds: tuple[Kind, ...] = ("per-layer",) if how == "gradient" else KINDS
    turns = how == "gradient" and config.tune_directions != "off"
    effects, costs = candidates_by_effect(model, learned, config, away, store) if turns else ([], None)
    estimated = candidates(directions, config.candidates, config.max_layer, config.embedding, model.folder.tied, kinds, not effects)
    tried = [*effects, *estimated]
    scores, base_logprob = _scores(model, tried, val, prompts, how, store)
    scored = list(zip(tried, scores, strict=True))
    choice = choose(scored, config.max_kl, SHORTLIST)
    if how == "gradient":
        shortlist = starts(scored, config.prefer, config.max_kl)[:STARTS]
    else:
        shortlist = [scored[i][0] for i in choice.passing[:SHORTLIST]]
    shares = SHARES if how == "off" else SHARES[:1]
    seen = _measured(model, shortlist, shares, val, config, store)
    first = best_start(model, shortlist, seen, val, config, store) if how == "gradient" else _best(seen, config) // len(shares)
    start = shortlist[first]
    steps: list[Step] = []
    if how == "gradient":
        seen, steps, ended = tuned(model, learned, val, start, seen, costs, config, away, store)
        notes += ended
    elif how == "search":
        seen += _searched(model, shortlist, val, config)
    best, replied, relaxed = _gated(model, seen, val, config, store)
    if config.norms == "keep":
        notes.append("--norms keep applies only when the weights are edited; the val figures are without it")
    filtered = () if how == "gradient" else choice.relaxed  # no filter applies to the tuner's starting point
    chosen, position = seen[best], -1 - start.position
    selection = Selection(
        chosen=next(candidate_record(*each) for each in scored if each[0] is start),
        filters=filters_record(choice, config),
        relaxed=(*notes, *filtered, *relaxed),
        candidates=tuple(candidate_record(*each) for each in scored),
        name=chosen.name,
        strength=float(chosen.edit.strength.max()),
        tuning=tuning_record(seen, best, replied, steps, how, config, start.edit, learned.counts),
        yardstick=YardstickRecord(asked=val.target.asked, withheld=val.target.withheld, base_logprob=base_logprob),
        scoped=scoped_record(directions, start, chosen.edit, None if away is None else away[position]),
    )
    own = replied[best]["target"]
    said = f"chosen: {chosen.name}: {own.withheld} of {own.asked} val replies still withheld, KL {chosen.point.kl:.3f} nats"
    say("; relaxed: ".join([said, *selection.relaxed]))
    return replace(chosen.edit, keep_norms=config.norms == "keep"), selection


def _scores(
    model: Model, tried: Sequence[Candidate], val: Examples, prompts: Prompts, how: TuningMethod, store: ResumeStore
) -> tuple[list[Scores], float]:
    """The candidates' causal scores, and the unedited model's mean log-probability of its own openings.

    The tuner's starting point is chosen by what is removed and what drifts, so with the tuner no baseline prompts are scored."""
    withheld = Continued(evenly(val.target.prompts, RANKED_BY), evenly(val.target.openings, RANKED_BY))
    answered = Continued([], []) if how == "gradient" else _induced(model, val, prompts)
    by = Yardstick(withheld, answered, _led(val.stays["harmless"]))
    store = store.of([[c.name, c.shift_layer] for c in tried], [t for c in tried for t in (c.edit.direction, c.edit.strength, c.shift)])
    found = store.value("scores")
    if found is None:
        below = shared_below(model, first_edited(c.edit for c in tried), asked_of(by))
        with stage("scoring the candidates (prompts)", scoring_work(len(tried), by)) as advance, below:
            scores, base_logprob = score_all(model, tried, by, advance)
        found = [[asdict(each) for each in scores], base_logprob]
        store.save_value("scores", found)
    return [Scores(**each) for each in found[0]], found[1]


def _led(stay: Stay) -> list[list[int]]:
    """Prompts with their replies up to, but without, the first token at which replies differ."""
    each = enumerate(zip(stay.asked.prompts, stay.asked.continuations, strict=True))
    return evenly([[*prompt, *reply[: stay.first(i)]] for i, (prompt, reply) in each], RANKED_BY)


def _induced(model: Model, val: Examples, prompts: Prompts) -> Continued:
    """Baseline prompts, each followed by an opening that would withhold it."""
    encoded = encode(model.tokenizer, [p.text for p in prompts["baseline"]])
    return Continued(evenly(encoded, RANKED_BY), evenly(dealt(val.target, prompts["target"], prompts["baseline"]), RANKED_BY))


def _measured(
    model: Model, shortlist: Sequence[Candidate], shares: Sequence[float], val: Examples, config: RunConfig, store: ResumeStore
) -> list[Seen]:
    """Measure the best candidates at each share of the strength; ordered by candidate, then by share."""
    tried = [(c, config.strength * share) for c in shortlist for share in shares]
    edits = [candidate.edit.scaled(strength) for candidate, strength in tried]
    store = store.of(None, [t for edit in edits for t in (edit.direction, edit.strength)])
    found = store.value("points")
    if found is None:
        below = shared_below(model, first_edited(edits), measured_on(val))
        with stage("measuring the best candidates (prompts)", len(edits) * measuring_work(val)) as advance, below:
            found = [asdict(point) for point in measure(model, edits, val, advance)]
        store.save_value("points", found)
    return [Seen(f"{c.name}, strength {s:g}", 0, 0.0, edit, Point(**p)) for (c, s), edit, p in zip(tried, edits, found, strict=True)]


def _best(seen: Sequence[Seen], config: RunConfig) -> int:
    return ranked([each.point for each in seen], config.prefer, config.max_kl)[0]


def _gated(
    model: Model, seen: Sequence[Seen], val: Examples, config: RunConfig, store: ResumeStore
) -> tuple[int, dict[int, By], list[str]]:
    """The index of the chosen edit, the replies of the edits that passed through the gate by index, and notes on bounds that do not hold.

    Raises InputError if no edit is finite."""
    points = [each.point for each in seen]
    order = ranked(points, config.prefer, config.max_kl)
    tried = [seen[i] for i in order[:GATED]]
    store = store.of(None, [t for each in tried for t in (each.edit.direction, each.edit.strength)])
    found = store.value("gate")
    if found is None:
        with stage("replies of the best edits (val)", gate_work(tried, val)) as advance:
            found = [saved(each) for each in gated(model, tried, val, advance)]
        store.save_value("gate", found)
    replied: dict[int, By] = dict(zip(order, map(loaded, found), strict=False))
    best = passed(points, replied, config.prefer, config.max_kl)
    return best, replied, over_bound(points, order, best, config.max_kl)


def _searched(model: Model, shortlist: Sequence[Candidate], val: Examples, config: RunConfig) -> list[Seen]:
    """Search without gradients. Returns every edit that it tried."""
    space = Space(shortlist, model.folder.layers, config.max_layer)
    with stage("searching edits (prompts)", config.trials * measuring_work(val)) as advance:
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
    """A hash of what makes points comparable. Machines share a study if they measure the same edits of one model on the same replies."""
    rows = [[round(x, 2) for x in c.edit.direction.flatten()[:: max(1, c.edit.direction.numel() // 64)].tolist()] for c in shortlist]
    facts = [
        model.folder.config.to_dict(),
        [[list(ids) for ids in each] for each in replies_of(val)],
        rows,
        config.strength,
        config.embedding,
    ]
    return str(blake3(json.dumps([*facts, config.dtype], sort_keys=True, default=str).encode()).hexdigest(8))
