"""A control: does the edit do more than edits of the same size along random directions? Measured on first tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from abliterate.compute.passes import NO_INTERVENTION, Advance, Ids, Intervention, Model, Pass, no_progress
from abliterate.measures.parts.moved import Controls, Moved, SameFirst
from abliterate.measures.parts.rates import Rate
from abliterate.measures.predictions import Firsts, LogitsListener, ask, kl_divergence
from abliterate.measures.summary import rate
from abliterate.model.edit import Edit

SEEDS = (0, 1, 2)


def random_plan(edit: Edit, seed: int) -> Edit:
    """The edit with random orthonormal rows in place of its directions: the same number, strengths, blocks and components.

    If the edit uses one direction for all blocks, or for both components of a block, so does the random one.
    """
    blocks, components, k, d_model = edit.direction.shape
    shared = torch.equal(edit.direction, edit.direction[:, :1].expand_as(edit.direction))
    drawn = (1 if edit.same_everywhere() else blocks, 1 if shared else components)
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(*drawn, d_model, k, generator=generator, dtype=torch.float64)
    rows = torch.linalg.qr(gaussian).Q.transpose(-1, -2).float()
    return replace(edit, direction=rows.expand(blocks, components, k, d_model).contiguous())


@dataclass(frozen=True)
class FirstTokens:
    """For one edit: per prompt, whether the likeliest first token is still that of the unedited model; and the mean first-token
    KL(base‖edited) on harmless prompts in nats, None if it is not finite."""

    same: list[bool]
    kl: float | None


class _Likeliest:
    """``tokens`` [prompt]: the likeliest token after each prompt."""

    def __init__(self, prompts: Ids, intervention: Intervention) -> None:
        self.passed = Pass(prompts, intervention)
        self.tokens: Int[Tensor, " prompt"] = torch.full((len(prompts),), -1)

    def hear(self, indices: Sequence[int], logits: Float[Tensor, "row kept vocab"]) -> None:
        self.tokens[list(indices)] = logits[:, -1].argmax(-1).cpu()


class _Moved:
    """``kl`` [prompt]: KL of the first token from the predictions that ``base`` recorded before."""

    def __init__(self, base: Firsts, intervention: Intervention) -> None:
        self._base, self.passed = base, Pass(base.passed.sequences, intervention)
        self.kl = torch.full((len(base.passed.sequences),), torch.nan)

    def hear(self, indices: Sequence[int], logits: Float[Tensor, "row kept vocab"]) -> None:
        self.kl[list(indices)] = kl_divergence(self._base.logprobs[list(indices)], logits[:, -1].log_softmax(-1).cpu())


def first_tokens(model: Model, edits: Sequence[Edit], target: Ids, harmless: Ids, advance: Advance = no_progress) -> list[FirstTokens]:
    """Apply each edit with hooks and measure first tokens: one forward pass over the prompts per edit, all in one pass over the weights.

    The embedding follows each edit's policy; ``keep_norms`` has no effect here. If the chat template opens a thought, the first token is
    the first token of the thought.
    """
    unedited, base = _Likeliest(target, NO_INTERVENTION), Firsts(harmless)
    interventions = [Intervention(edit) for edit in edits]
    changed = [(_Likeliest(target, intervention), _Moved(base, intervention)) for intervention in interventions]
    hearers: list[LogitsListener] = [unedited, base, *(hearer for pair in changed for hearer in pair)]
    ask(model, hearers, advance)
    return [FirstTokens((likeliest.tokens == unedited.tokens).tolist(), _mean(moved.kl)) for likeliest, moved in changed]


def control_work(target: Ids, harmless: Ids) -> int:
    """How many prompts run through the model: unedited, edited, and once per random edit."""
    return (2 + len(SEEDS)) * (len(target) + len(harmless))


def control(
    model: Model, edit: Edit, sets: Sequence[str], asked: int, withheld: Ids, harmless: Ids, advance: Advance = no_progress
) -> Controls:
    """The content of controls.json: the edit compared with a random edit per seed in ``SEEDS``, applied with hooks to the unedited model.

    ``withheld``: the target prompts (token ids) that the unedited model withholds, of ``asked`` in the target sets.
    """
    edited, *random = first_tokens(model, [edit, *(random_plan(edit, seed) for seed in SEEDS)], withheld, harmless, advance)

    def same(found: FirstTokens) -> Rate:
        return rate(sum(found.same), len(withheld))

    return Controls(
        seeds=SEEDS,
        set=tuple(sets),
        n=asked,
        n_withheld=len(withheld),
        same_first=SameFirst(edited=same(edited), random=tuple(map(same, random))),
        kl_first_token=Moved(edited=edited.kl, random=tuple(found.kl for found in random)),
    )


def _mean(values: Float[Tensor, " prompt"]) -> float | None:
    mean = float(values.double().mean())
    return mean if math.isfinite(mean) else None
