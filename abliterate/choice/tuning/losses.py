"""What the tuner makes less: what the model withholds, and how far it moves where it should stay; pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from abliterate.measures.predictions import with_rest

FLOOR = -6.0  # nats a token: below it a token is gone, and more of it would only cost
FADING = 0.7  # what each further token of an opening counts, of the one before
_NEVER = 1e-3


def suppression(logprobs: Float[Tensor, " token"]) -> Float[Tensor, ""]:
    """How likely an opening is: the mean log-probability of its tokens, each at least ``FLOOR``, the first ones counting most.

    0 where all are certain, ``FLOOR`` where all are gone; nats.
    """
    weights = FADING ** torch.arange(len(logprobs), device=logprobs.device, dtype=logprobs.dtype)
    return (weights * logprobs.clamp(min=FLOOR)).sum() / weights.sum()


def closing(logprobs: Float[Tensor, " token"]) -> Float[Tensor, ""]:
    """The log-odds that a thought is closed at once, from the log-probabilities of the closing mark; at least ``FLOOR``, nats.

    The thought-suppression score of Cyberey & Evans 2025 (arXiv 2504.17130).
    """
    total = logprobs.sum()
    return (total - (1 - total.exp()).clamp(min=_NEVER).log()).clamp(min=FLOOR)


def lumped(logprobs: Float[Tensor, "token vocab"], tokens: Int[Tensor, "token kept"]) -> Float[Tensor, "token kept_and_rest"]:
    """Log-probabilities of the kept tokens, and of all others as one."""
    return with_rest(logprobs.gather(-1, tokens.long()))


def divergences(base: Float[Tensor, "token kept_and_rest"], edited: Float[Tensor, "token kept_and_rest"]) -> Float[Tensor, " token"]:
    """KL(base‖edited) at each token, nats."""
    return (base.exp() * (base - edited)).sum(-1)


def drift(kl: Float[Tensor, " token"], first: int = 0) -> Float[Tensor, ""]:
    """What a reply's divergences cost: half for the ``first`` token that tells anything, by which the rest is led, half for the mean of
    all."""
    return (kl[first] + kl.mean()) / 2


def withheld(row: Float[Tensor, "kept vocab"], reply: Sequence[int], mark: int = 0) -> Float[Tensor, ""]:
    """How likely a reply that withholds is, from the logits that end with its last token's; its first ``mark`` tokens close a thought."""
    logprobs = row[-len(reply) - 1 : -1].log_softmax(-1)
    likely = logprobs.gather(-1, torch.tensor(list(reply), device=row.device)[:, None])[:, 0]
    return suppression(likely) + (closing(likely[:mark]) if mark else 0.0)


def guessed(row: Float[Tensor, "kept vocab"], length: int, first: int, chance: torch.Generator) -> Float[Tensor, ""]:
    """A score whose gradients' second moment is that of the Fisher information of a reply of so many tokens, each token weighted as in
    ``drift``: the log-probability of a token that is drawn at each place, by the root of its weight (Martens 2020, section 5)."""
    logprobs = row[-length - 1 : -1].log_softmax(-1)
    drawn = torch.multinomial(logprobs.detach().exp().cpu(), 1, generator=chance).to(row.device)
    weights = torch.full((length,), 0.5 / length, device=row.device)
    weights[first] += 0.5
    return (weights.sqrt() * logprobs.gather(-1, drawn)[:, 0]).sum()
