"""The choice of the edit, on val prompts: candidates scored by cause, then the best few by full replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from abliterate.config import RunConfig
from abliterate.directions.candidates import Candidate, Directions, candidates
from abliterate.directions.causal import Scores, Yardstick, score_all, scoring_work
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
DRIFT_COST = 0.25  # of a nat of first-token KL on harmless prompts
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
    choice = choose(scored, config.max_kl, REHEARSED)
    chosen, strength, rehearsal = _rehearsed(model, [scored[i] for i in choice.passing], val, _texts(prompts), config)
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


@dataclass(frozen=True)
class Tried:
    """An edit that gave full replies; ``drift`` is its candidate's KL at full strength, nats."""

    candidate: Candidate
    strength: float
    drift: float
    rehearsal: Rehearsal

    def cost(self, base: Rehearsal) -> float:
        """What it failed at, and what it moved."""
        return round(self.rehearsal.cost(base) + DRIFT_COST * self.drift, 6)


def _rehearsed(
    model: Model,
    shortlist: Sequence[tuple[Candidate, Scores]],
    val: Mapping[Role, list[list[int]]],
    texts: Sequence[str],
    config: RunConfig,
) -> tuple[Candidate, float, dict[str, Any]]:
    """The candidate and strength of the lowest cost in full replies to val prompts.

    The best few are tried, and the best of these more weakly where it broke replies. A nat of drift costs as much as
    ``DRIFT_COST`` of the prompts; of equals the weakest is taken.
    """
    few, replies = shortlist[:REHEARSED], len(val["target"]) + len(val["baseline"])
    with stage("full replies of the best candidates (val)", replies * (1 + len(few))) as advance:

        def replied(plans: Sequence[EditPlan | None]) -> list[Rehearsal]:
            changes = [Change(plan) for plan in plans]
            return rehearse(model, changes, val["target"], val["baseline"], config.max_new_tokens, advance, texts)

        base, *found = replied([None, *(candidate.plan.scaled(config.strength) for candidate, _ in few)])
        tried = [Tried(c, config.strength, scores.kl, rehearsal) for (c, scores), rehearsal in zip(few, found, strict=True)]
        best = min(tried, key=lambda each: each.cost(base))
        weaker = best
        for share in WEAKER:
            if weaker.rehearsal.cost(base) > weaker.rehearsal.withheld:  # it broke replies
                strength = config.strength * share
                weaker = replace(best, strength=strength, rehearsal=replied([best.candidate.plan.scaled(strength)])[0])
                tried.append(weaker)
    chosen = min(tried, key=lambda each: (each.cost(base), each.strength))
    return chosen.candidate, chosen.strength, rehearsal_document(base, [(t.candidate.name, t.strength, t.rehearsal) for t in tried])
