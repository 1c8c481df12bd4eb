"""The choice of the edit, on val prompts: candidates scored by cause, then the best few by full replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from abliterate.config import RunConfig
from abliterate.directions.candidates import Candidate, Directions, candidates
from abliterate.directions.causal import Yardstick, score_all, scoring_work
from abliterate.directions.select import choose, selection_document
from abliterate.evaluation.openings import dealt, own_openings
from abliterate.evaluation.rehearsal import Rehearsal, rehearsal_document, rehearse
from abliterate.model.forward import Continued
from abliterate.model.passes import Change, Model
from abliterate.model.plan import EditPlan
from abliterate.model.template import encode
from abliterate.progress import say, stage
from abliterate.prompts import Prompt, Role, RoleSets

REHEARSED = 3  # candidates that give full replies
WEAKER = (0.85, 0.7)  # shares of the strength


def select(model: Model, sets: RoleSets, config: RunConfig, directions: Directions) -> tuple[EditPlan, dict[str, Any]]:
    """The chosen plan, strengths included, and the content of ``selection.json``; val prompts only."""
    roles: tuple[Role, ...] = ("target", "baseline", "harmless")
    prompts = {role: sets.prompts(role, "val") for role in roles}
    val = {role: encode(model.tokenizer, [p.text for p in asked]) for role, asked in prompts.items()}
    with stage("the model's own replies (val)", len(val["target"])) as advance:
        own = own_openings(model, val["target"], advance, [p.text for p in prompts["target"]])
    tried = candidates(directions, config.candidates, config.max_layer, config.embedding, model.folder.tied)
    induced = dealt(own, prompts["target"], prompts["baseline"])
    by = Yardstick(Continued(own.prompts, own.openings), Continued(val["baseline"], induced), val["harmless"])
    with stage("candidates scored by cause (prompts)", scoring_work(len(tried), by)) as advance:
        scores, base_logprob = score_all(model, tried, by, advance)
    scored = list(zip(tried, scores, strict=True))
    choice = choose(scored, config.max_kl)
    chosen, strength, rehearsal = _rehearsed(model, [scored[i][0] for i in choice.passing], val, _texts(prompts), config)
    choice = replace(choice, chosen=next(i for i, (c, _) in enumerate(scored) if c is chosen))
    document = selection_document(scored, choice, config.max_kl, config.max_layer)
    if not own.withheld:
        document["relaxed"].insert(0, "the model withholds none of the val prompts: its replies to all of them are the yardstick")
    document |= {"strength": strength, "rehearsal": rehearsal}
    document["yardstick"] = {"asked": own.asked, "withheld": own.withheld, "base_logprob": base_logprob}
    say("; relaxed: ".join([f"chosen: {chosen.name}, strength {strength:g}", *document["relaxed"]]))
    return replace(chosen.plan.scaled(strength), keep_norms=config.norms == "keep"), document


def _texts(prompts: Mapping[Role, Sequence[Prompt]]) -> list[str]:
    return [prompt.text for role in ("target", "baseline") for prompt in prompts[role]]


def _rehearsed(
    model: Model, shortlist: Sequence[Candidate], val: Mapping[Role, list[list[int]]], texts: Sequence[str], config: RunConfig
) -> tuple[Candidate, float, dict[str, Any]]:
    """The candidate and strength of the lowest cost in full replies to val prompts.

    The best few are tried, and the best of these more weakly where it broke replies.
    """
    replies = len(val["target"]) + len(val["baseline"])
    with stage("full replies of the best candidates (val)", replies * (1 + min(REHEARSED, len(shortlist)))) as advance:

        def replied(plans: Sequence[EditPlan | None]) -> list[Rehearsal]:
            changes = [Change(plan) for plan in plans]
            return rehearse(model, changes, val["target"], val["baseline"], config.max_new_tokens, advance, texts)

        best_few = shortlist[:REHEARSED]
        base, *found = replied([None, *(c.plan.scaled(config.strength) for c in best_few)])
        tried = [(c, config.strength, rehearsal) for c, rehearsal in zip(best_few, found, strict=True)]
        best = min(tried, key=lambda row: row[2].cost(base))
        for share in WEAKER:
            if min(row[2].cost(base) - row[2].withheld for row in tried if row[0] is best[0]) > 0:
                strength = config.strength * share
                tried.append((best[0], strength, replied([best[0].plan.scaled(strength)])[0]))
    chosen, strength, _ = min(tried, key=lambda row: row[2].cost(base))
    return chosen, strength, rehearsal_document(base, [(c.name, s, found) for c, s, found in tried])
