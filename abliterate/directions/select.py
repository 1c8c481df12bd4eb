"""The choice of one candidate by its scores, and what had to be relaxed for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from abliterate.directions.candidates import Candidate
from abliterate.directions.causal import Scores

MAX_STAYS = 0.1


@dataclass(frozen=True)
class Choice:
    """Index of the chosen candidate, the filters in force at the end, and each relaxation in words."""

    chosen: int
    max_kl: float
    relaxed: tuple[str, ...]


def choose(scored: Sequence[tuple[Candidate, Scores]], max_kl: float) -> Choice:
    """The lowest bypass among the candidates that pass all filters; a filter that leaves nothing is relaxed stepwise.

    Filters (Arditi et al. 2024, appendix C): KL < ``max_kl``, induce > 0 (layer < 0.8 L holds by construction), and the
    model's own openings stay likely on at most 10 % of the target prompts. KL is relaxed first, by doubling, then the
    openings, then induce.
    """
    relaxed: list[str] = []
    kl_bound = max_kl
    largest = max(s.kl for _, s in scored)
    filters = {"stays": True, "induce": True}
    while True:
        passing = [
            i
            for i, (_, s) in enumerate(scored)
            if s.kl < kl_bound and (s.stays <= MAX_STAYS or not filters["stays"]) and (s.induce > 0 or not filters["induce"])
        ]
        if passing:
            best = min(passing, key=lambda i: (scored[i][1].bypass, i))
            return Choice(best, kl_bound, tuple(relaxed))
        if kl_bound <= largest and kl_bound < float("inf"):
            kl_bound *= 2
            relaxed.append(f"KL bound to {kl_bound:g} nats")
        elif filters["stays"]:
            filters["stays"], kl_bound = False, max_kl
            relaxed = [f"no candidate makes the model's openings unlikely on {1 - MAX_STAYS:.0%} of target prompts: filter dropped"]
        elif filters["induce"]:
            filters["induce"], kl_bound = False, max_kl
            relaxed = ["no candidate induces withholding when added: filter dropped", "openings filter dropped"]
        else:
            kl_bound = float("inf")
            relaxed.append("KL bound dropped")


def selection_document(scored: Sequence[tuple[Candidate, Scores]], choice: Choice, max_kl: float, max_layer: float) -> dict[str, Any]:
    """What selection.json says of the candidates, the filters and the choice."""
    rows = [
        {"name": c.name, "kind": c.kind, "estimator": c.estimator, "position": c.position, "layer": c.layer, **asdict(s)} for c, s in scored
    ]
    return {
        "chosen": rows[choice.chosen],
        "filters": {"max_kl": max_kl, "max_kl_in_force": choice.max_kl, "max_layer": max_layer, "max_stays": MAX_STAYS, "induce": "> 0"},
        "relaxed": list(choice.relaxed),
        "candidates": rows,
    }
