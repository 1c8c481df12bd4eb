"""Causal scores of a candidate: apply it with hooks and measure what changes. Forward passes only, no generation.

Arditi et al. (2024, appendix C) score a direction by refusal after ablating it (bypass), refusal after adding it to harmless prompts
(induce), and KL divergence on harmless prompts. Their refusal metric reads fixed first tokens. Here it is the log-probability of the
openings with which *this* model withheld, so it also works for canned lines and in any language.
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
    """How an edit changes the likelihood of the model's withholding openings, and its predictions on harmless prompts.

    ``bypass``: mean log-probability of the openings on target prompts after ablation (nats, the whole opening). ``stays``, ``spill`` and
    ``induce`` are shares of the unedited model's likelihoods, because some models withhold with one canned line and others with many.
    ``stays``: the share of each opening's likelihood that is left on target prompts after ablation, at most 1 each. ``spill`` and
    ``induce``: how much the likelihood of openings on baseline prompts rises after ablation and after addition, as a share of their
    likelihood on target prompts in the unedited model; None if no baseline prompts were used. ``kl``: mean KL(base‖ablated) of the first
    token on harmless prompts, nats."""

    bypass: float
    stays: float
    induce: float | None
    kl: float
    spill: float | None = 0.0

    @property
    def finite(self) -> bool:
        """Whether the model's outputs are finite with this candidate."""
        return all(map(math.isfinite, (self.kl, self.bypass, self.stays, self.induce or 0.0)))


@dataclass(frozen=True)
class Yardstick:
    """The val prompts (token ids) that candidates are scored on.

    ``target``: prompts that the model withholds, each followed by its opening. ``baseline``: baseline prompts, each followed by an opening
    that would withhold it; may be empty. ``harmless``: prompts that show the drift.
    """

    target: Continued
    baseline: Continued
    harmless: Ids


@dataclass
class _Measured:
    """For one intervention: log-probabilities of the openings [prompt], and the first-token KL from the unedited model [prompt]."""

    target: Float[Tensor, " target"]
    baseline: Float[Tensor, " baseline"]
    induced: Float[Tensor, " baseline"]
    kl: Float[Tensor, " harmless"]


def score_all(model: Model, tried: Sequence[Candidate], by: Yardstick, advance: Advance = no_progress) -> tuple[list[Scores], float]:
    """Apply each candidate with hooks and score it, all in one pass over the weights. Returns the scores, and the unedited model's mean
    log-probability of its own openings. With several processes, process i of n scores candidates i, i + n, i + 2n, …"""
    if not isinstance(model, DistributedModel):
        return score_share(model, tried, by, advance)
    found = model.on_all(score_share, [(tried[rank :: model.size], by) for rank in range(model.size)], advance)
    return [found[i % model.size][0][i // model.size] for i in range(len(tried))], found[0][1]


def score_share(model: Model, tried: Sequence[Candidate], by: Yardstick, advance: Advance = no_progress) -> tuple[list[Scores], float]:
    """``score_all`` for the candidates of one process."""
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
    """Every sequence that runs through the model for one candidate."""
    return [list(ids) for each in (by.target, by.baseline) for ids in each.passed().sequences] + [list(ids) for ids in by.harmless]


def scoring_work(candidates: int, by: Yardstick) -> int:
    """How many prompts run through the model to score this many candidates."""
    each = len(by.target.prompts) + len(by.baseline.prompts) + len(by.harmless)
    return (candidates + 1) * each + candidates * len(by.baseline.prompts)


def _passes(
    interventions: Sequence[Intervention], shifts: Sequence[Intervention], by: Yardstick
) -> tuple[list[Pass], list[tuple[str, int]]]:
    """All passes, those of the unedited model first, and for each pass what it measures and the index of its intervention."""
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
    own = base.target.mean()  # of whole openings, not per token: once a line has begun, the rest of it is certain under any edit
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
    """The mean likelihood ratio, each clipped to 1, from differences of log-probabilities."""
    return float(nats.double().clamp(max=0).exp().mean())
