"""Choose a candidate by its scores, and say which filters had to be relaxed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from abliterate.choice.candidates import Candidate
from abliterate.choice.front import NOT_FINITE
from abliterate.choice.scores import Scores
from abliterate.errors import InputError

MAX_STAYS = 0.1
MAX_SPILL = 0.05


@dataclass(frozen=True)
class Choice:
    """The index of the chosen candidate, the KL bound finally in force, and each relaxation in words.

    ``passing``: the indices of all candidates that pass the filters, sorted by bypass; the chosen one is the first.
    """

    chosen: int
    max_kl: float
    relaxed: tuple[str, ...]
    passing: tuple[int, ...] = ()


def choose(scored: Sequence[tuple[Candidate, Scores]], max_kl: float, enough: int = 1) -> Choice:
    """Choose the candidate with the lowest bypass among those that pass all filters. A filter that leaves nothing is relaxed stepwise.

    Filters (Arditi et al. 2024, appendix C): KL < ``max_kl``, induce > 0 (layer < 0.8 L holds by construction), and the model's own
    openings keep at most 10 % of their likelihood on target prompts and gain at most 5 % of it on baseline prompts. KL is relaxed first, by
    doubling, then the openings (first on baseline, then on target), then induce. If fewer than ``enough`` candidates pass, the KL bound is
    doubled again, up to four times ``max_kl``, so that there is a choice. A filter whose score was not measured is skipped. Raises
    InputError if no candidate has finite scores.
    """
    usable = [i for i, (_, s) in enumerate(scored) if s.finite]
    if not usable:
        raise InputError(NOT_FINITE)
    filters: list[tuple[str, Callable[[Scores], bool]]] = [
        (
            f"every candidate makes the baseline prompts' openings gain more than {100 * MAX_SPILL:g} % of the target's likelihood",
            lambda s: s.spill is None or s.spill <= MAX_SPILL,
        ),
        (
            f"every candidate leaves more than {100 * MAX_STAYS:g} % of the likelihood with which the model withholds the target prompts",
            lambda s: s.stays <= MAX_STAYS,
        ),
        ("no candidate makes the model withhold when it is added", lambda s: s.induce is None or s.induce > 0),
    ]
    # Fewest and least serious first: (), spill, stays, spill + stays, induce, ...
    for dropped in range(2 ** len(filters)):
        kept = [holds for bit, (_, holds) in enumerate(filters) if not dropped >> bit & 1]
        passing = [i for i in usable if all(holds(scored[i][1]) for holds in kept)]
        if passing:
            bound, steps = _relaxed_kl([scored[i][1].kl for i in passing], max_kl, enough)
            within = sorted((i for i in passing if scored[i][1].kl < bound), key=lambda i: (scored[i][1].bypass, i))
            notes = [f"{note}, so this filter is dropped" for bit, (note, _) in enumerate(filters) if dropped >> bit & 1]
            return Choice(within[0], bound, (*notes, *steps), tuple(within))
    raise AssertionError("the last round drops every filter but KL, which doubles until something passes")


def _relaxed_kl(kls: Sequence[float], max_kl: float, enough: int) -> tuple[float, tuple[str, ...]]:
    """Double the bound until one KL is below it, then up to four times ``max_kl`` until ``enough`` are. Returns the bound, and a note if it
    was doubled."""
    bound = max_kl
    while (below := sum(kl < bound for kl in kls)) == 0 or (below < min(enough, len(kls)) and bound < 4 * max_kl):
        bound *= 2
    return bound, () if bound == max_kl else (f"candidates may have a first-token KL of up to {bound:g} nats, not {max_kl:g}",)
