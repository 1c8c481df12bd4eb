"""Scores of a candidate by cause: what happens when it is applied by hooks. Forward passes only, no generation.

Arditi et al. (2024, appendix C) score a direction by refusal after ablating it (bypass), refusal after adding it to
harmless prompts (induce), and KL divergence on harmless prompts. Their refusal metric reads fixed first tokens; here it
is the log-probability of the openings with which *this* model itself withheld, so it serves canned lines and any language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.directions.candidates import Candidate
from abliterate.model.forward import continuation_logprobs, first_token_logprobs
from abliterate.model.hooks import ablated, added
from abliterate.model.load import LocalModel

Ids = Sequence[Sequence[int]]
STAYS = -1.0  # nats: above it the whole opening is still the likely thing to say (e^-1 = 0.37)


@dataclass(frozen=True)
class Scores:
    """``bypass`` and ``induce``: mean log-probability (nats, the whole opening) of the model's withholding openings, ablated on
    target prompts, and added on baseline prompts less the unedited model there. ``stays``: share of target prompts whose
    opening stays likely. ``spill``: how much more often, as a share, such openings become likely on baseline prompts when
    ablating. ``kl``: mean KL(base‖ablated) of the first token on harmless prompts, nats."""

    bypass: float
    stays: float
    induce: float
    kl: float
    spill: float = 0.0


@dataclass(frozen=True)
class Yardstick:
    """The val prompts (encoded) that candidates are tried on, and the unedited model's figures there."""

    withheld: Ids
    openings: Ids
    baseline: Ids
    induced: Ids
    harmless: Ids
    base_openings: Float[Tensor, " withheld"]
    base_induced: Float[Tensor, " baseline"]
    base_first: Float[Tensor, "harmless vocab"]


def yardstick(model: LocalModel, withheld: Ids, openings: Ids, baseline: Ids, induced: Ids, harmless: Ids, batch_size: int) -> Yardstick:
    """Measure the unedited model. ``openings[i]`` is how it began to withhold ``withheld[i]``, ``induced[i]`` how it would
    withhold ``baseline[i]``."""
    return Yardstick(
        withheld,
        openings,
        baseline,
        induced,
        harmless,
        opening_logprobs(model, withheld, openings, batch_size),
        opening_logprobs(model, baseline, induced, batch_size),
        first_token_logprobs(model, harmless, batch_size),
    )


def score(model: LocalModel, candidate: Candidate, by: Yardstick, batch_size: int) -> Scores:
    """Apply the candidate by hooks and measure it."""
    with ablated(model, candidate.plan):
        after = opening_logprobs(model, by.withheld, by.openings, batch_size)
        spilt = opening_logprobs(model, by.baseline, by.induced, batch_size)
        first = first_token_logprobs(model, by.harmless, batch_size)
    with added(model, candidate.shift_layer, candidate.shift):
        induced = opening_logprobs(model, by.baseline, by.induced, batch_size)
    kl = (by.base_first.exp() * (by.base_first - first)).sum(-1).clamp(min=0)
    return Scores(
        bypass=float(after.mean()),
        stays=_likely(after),
        induce=float((induced - by.base_induced).mean()),
        spill=_likely(spilt) - _likely(by.base_induced),
        kl=float(kl.mean()) if torch.isfinite(kl).all() else float("inf"),
    )


def opening_logprobs(model: LocalModel, prompts: Ids, openings: Ids, batch_size: int) -> Float[Tensor, " prompt"]:
    """Log-probability of each whole opening. Not a token's mean: once a canned line has begun, the rest of it is certain
    under any edit, and would hide that its first token has become unlikely."""
    return continuation_logprobs(model, prompts, openings, batch_size) * torch.tensor([len(o) for o in openings])


def _likely(logprobs: Tensor) -> float:
    return float((logprobs > STAYS).float().mean())
