"""The tuner's losses: how likely the model withholds, and how far it drifts where it should stay. Pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from abliterate.measures.predictions import with_rest

FLOOR = -6.0  # nats per token; below this a token is suppressed, and suppressing it further would only add drift
FADING = 0.7  # the weight of each token of an opening, relative to the token before
_NEVER = 1e-3


def suppression(logprobs: Float[Tensor, " token"]) -> Float[Tensor, ""]:
    """How likely an opening is, in nats: the weighted mean log-probability of its tokens, each at least ``FLOOR``; early tokens weigh most.

    0 if all tokens are certain, ``FLOOR`` if all are suppressed.
    """
    weights = FADING ** torch.arange(len(logprobs), device=logprobs.device, dtype=logprobs.dtype)
    return (weights * logprobs.clamp(min=FLOOR)).sum() / weights.sum()


def closing(logprobs: Float[Tensor, " token"]) -> Float[Tensor, ""]:
    """The log-odds, in nats, that a thought is closed at once, from the log-probabilities of the closing mark; at least ``FLOOR``.

    The thought-suppression score of Cyberey & Evans 2025 (arXiv 2504.17130).
    """
    total = logprobs.sum()
    return (total - (1 - total.exp()).clamp(min=_NEVER).log()).clamp(min=FLOOR)


def lumped(logprobs: Float[Tensor, "token vocab"], tokens: Int[Tensor, "token kept"]) -> Float[Tensor, "token kept_and_rest"]:
    """Log-probabilities of the kept tokens, and of all other tokens lumped together."""
    return with_rest(logprobs.gather(-1, tokens.long()))


def divergences(base: Float[Tensor, "token kept_and_rest"], edited: Float[Tensor, "token kept_and_rest"]) -> Float[Tensor, " token"]:
    """KL(base‖edited) at each token, nats."""
    return (base.exp() * (base - edited)).sum(-1)


def drift(kl: Float[Tensor, " token"], first: int = 0) -> Float[Tensor, ""]:
    """The drift loss of a reply: half the KL at its ``first`` informative token, which steers the rest, plus half the mean KL of all
    tokens."""
    return (kl[first] + kl.mean()) / 2


def withheld(row: Float[Tensor, "kept vocab"], reply: Sequence[int], mark: int = 0) -> Float[Tensor, ""]:
    """How likely a withholding reply is. ``row`` ends with the logits of its last token; its first ``mark`` tokens close a thought."""
    logprobs = row[-len(reply) - 1 : -1].log_softmax(-1)
    likely = logprobs.gather(-1, torch.tensor(list(reply), device=row.device)[:, None])[:, 0]
    return suppression(likely) + (closing(likely[:mark]) if mark else 0.0)


def guessed(row: Float[Tensor, "kept vocab"], length: int, first: int, chance: torch.Generator) -> Float[Tensor, ""]:
    """A score whose gradients have the Fisher information of the last ``length`` predictions as their second moment, each token weighted as
    in ``drift``: the log-probability of a token drawn at each position, times the root of its weight (Martens 2020, section 5)."""
    logprobs = row[-length - 1 : -1].log_softmax(-1)
    drawn = torch.multinomial(logprobs.detach().exp().cpu(), 1, generator=chance).to(row.device)
    weights = torch.full((length,), 0.5 / length, device=row.device)
    weights[first] += 0.5
    return (weights.sqrt() * logprobs.gather(-1, drawn)[:, 0]).sum()
