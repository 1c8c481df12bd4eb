"""Scores of a candidate by cause: what happens when it is applied by hooks. Forward passes only, no generation.

Arditi et al. (2024, appendix C) score a direction by refusal after ablating it (bypass), refusal after adding it to
harmless prompts (induce), and KL divergence on harmless prompts. Their refusal metric reads fixed first tokens; here it
is the log-probability of the openings with which *this* model itself withheld, so it serves canned lines and any language.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.choice.candidates import Candidate
from abliterate.compute.distributed import DistributedModel
from abliterate.compute.forward import Continued
from abliterate.compute.passes import NO_INTERVENTION, Advance, Ids, Intervention, Model, Pass, no_progress


@dataclass(frozen=True)
class Scores:
    """What an edit does to the likelihood of the openings with which the model withholds, and to harmless prompts.

    ``bypass``: mean log-probability (nats, the whole opening) on target prompts, ablated. The others are shares of the unedited model's own
    likelihoods, since some models withhold with one canned line and others with many. ``stays``: what ablating leaves of each opening's
    likelihood on target prompts, at most 1 each. ``spill`` and ``induce``: by how much openings become as likely on baseline prompts as
    the unedited model's own are on target prompts, when ablating and when adding; None where no baseline prompts were asked. ``kl``: mean
    KL(base‖ablated) of the first token on harmless prompts, nats."""

    bypass: float
    stays: float
    induce: float | None
    kl: float
    spill: float | None = 0.0

    @property
    def finite(self) -> bool:
        """Whether the candidate left the model's outputs finite."""
        return all(map(math.isfinite, (self.kl, self.bypass, self.stays, self.induce or 0.0)))


@dataclass(frozen=True)
class Yardstick:
    """The val prompts (encoded) that candidates are tried on.

    ``target`` are prompts that the model withholds, with the openings with which it did; ``baseline`` have openings that would
    withhold them, and may be none. ``harmless`` show the drift.
    """

    target: Continued
    baseline: Continued
    harmless: Ids


@dataclass
class _Measured:
    """Log-probabilities of openings [prompt] under one intervention, and the first token's KL from the unedited model [prompt]."""

    target: Float[Tensor, " target"]
    baseline: Float[Tensor, " baseline"]
    induced: Float[Tensor, " baseline"]
    kl: Float[Tensor, " harmless"]


def score_all(model: Model, tried: Sequence[Candidate], by: Yardstick, advance: Advance = no_progress) -> tuple[list[Scores], float]:
    """Apply each candidate by hooks and measure it, all in one pass over the weights; and the unedited model's mean log-probability
    of its own openings. Over several processes each takes every so-many-th candidate."""
    if not isinstance(model, DistributedModel):
        return score_share(model, tried, by, advance)
    found = model.on_all(score_share, [(tried[rank :: model.size], by) for rank in range(model.size)], advance)
    return [found[i % model.size][0][i // model.size] for i in range(len(tried))], found[0][1]


def score_share(model: Model, tried: Sequence[Candidate], by: Yardstick, advance: Advance = no_progress) -> tuple[list[Scores], float]:
    """What ``score_all`` gives, of one process's candidates."""
    interventions = [NO_INTERVENTION, *(Intervention(c.edit) for c in tried)]
    passes, readers = _passes(interventions, [Intervention(shift=c.shift, shift_layer=c.shift_layer) for c in tried], by)
    sizes = (by.target.prompts, by.baseline.prompts, by.baseline.prompts, by.harmless)
    found = [_Measured(*(torch.zeros(len(prompts)) for prompts in sizes)) for _ in interventions]
    base_first: dict[int, Tensor] = {}
    for number, indices, logits in model.logits(passes, advance):
        kind, which = readers[number]
        row = found[which]
        if kind == "target":
            row.target[list(indices)] = by.target.logprobs(indices, logits)
        elif kind == "baseline":
            row.baseline[list(indices)] = by.baseline.logprobs(indices, logits)
        elif kind == "induced":
            row.induced[list(indices)] = by.baseline.logprobs(indices, logits)
        else:
            first = logits[:, -1].log_softmax(-1).cpu()
            if which == 0:
                base_first |= dict(zip(indices, first, strict=True))
            base = torch.stack([base_first[i] for i in indices])
            row.kl[list(indices)] = (base.exp() * (base - first)).sum(-1).clamp(min=0)
    return [_scores(row, found[0]) for row in found[1:]], float(found[0].target.mean())


def asked_of(by: Yardstick) -> list[list[int]]:
    """Every sequence that goes through the model for a candidate."""
    return [list(ids) for each in (by.target, by.baseline) for ids in each.passed().sequences] + [list(ids) for ids in by.harmless]


def scoring_work(candidates: int, by: Yardstick) -> int:
    """How many prompts go through the model when so many candidates are scored."""
    each = len(by.target.prompts) + len(by.baseline.prompts) + len(by.harmless)
    return (candidates + 1) * each + candidates * len(by.baseline.prompts)


def _passes(
    interventions: Sequence[Intervention], shifts: Sequence[Intervention], by: Yardstick
) -> tuple[list[Pass], list[tuple[str, int]]]:
    """Every pass, the unedited model's first, and what each one measures of which change."""
    passes: list[Pass] = []
    readers: list[tuple[str, int]] = []
    for which, intervention in enumerate(interventions):
        passes += [by.target.passed(intervention), Pass(by.harmless, intervention)]
        readers += [("target", which), ("harmless", which)]
        if not by.baseline.prompts:
            continue
        passes.append(by.baseline.passed(intervention))
        readers.append(("baseline", which))
        if which:
            passes.append(by.baseline.passed(shifts[which - 1]))
            readers.append(("induced", which))
    return passes, readers


def _scores(found: _Measured, base: _Measured) -> Scores:
    own = base.target.mean()  # the whole opening's, not a token's mean: once a line has begun, the rest of it is certain under any edit
    asked = bool(len(base.baseline))
    before = _share(base.baseline - own)
    return Scores(
        bypass=float(found.target.mean()),
        stays=_share(found.target - base.target),
        induce=_share(found.induced - own) - before if asked else None,
        spill=_share(found.baseline - own) - before if asked else None,
        kl=float(found.kl.mean()) if torch.isfinite(found.kl).all() else float("inf"),
    )


def _share(nats: Float[Tensor, " prompt"]) -> float:
    """The mean likelihood ratio, each at most 1, of differences of log-probabilities."""
    return float(nats.double().clamp(max=0).exp().mean())
