"""The tuner's losses: how likely the model withholds, and how far it drifts where it should stay. Pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from abliterate.choice.tuning.openings import ALIKE
from abliterate.measures.predictions import with_rest

GONE = 0.01  # an opening of this probability is gone; making it less likely still would only add drift
FLOOR = math.log(GONE)
UNSAID = -6.0  # nats
FADING = 0.7  # the weight of each token of an opening, relative to the token before
_NEVER = 1e-3


def suppression(logprobs: Float[Tensor, " token"]) -> Float[Tensor, ""]:
    """How likely an opening is, in nats: the log of the probability of its first ``ALIKE`` tokens, which tell a refusal from an answer,
    plus ``GONE``. So an opening that is gone pulls hardly any more."""
    own = logprobs[:ALIKE].sum()
    return torch.logaddexp(own, torch.full_like(own, FLOOR))


def per_token(logprobs: Float[Tensor, " token"]) -> Float[Tensor, ""]:
    """How likely an opening is, in nats per token: the weighted mean log-probability of its tokens; early tokens weigh most. Tokens below
    ``UNSAID`` count as that, because their gradients say little about what the model writes."""
    weights = FADING ** torch.arange(len(logprobs), device=logprobs.device, dtype=logprobs.dtype)
    return (weights * logprobs.clamp(min=UNSAID)).sum() / weights.sum()


def fallen(base: Float[Tensor, " token"], edited: Float[Tensor, " token"]) -> Float[Tensor, ""]:
    """How much less likely an opening became, in nats of ``suppression``; 0 if it is as likely as before or likelier."""
    return (suppression(base) - suppression(edited)).clamp(min=0)


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


def likely(row: Float[Tensor, "kept vocab"], reply: Sequence[int]) -> Float[Tensor, " token"]:
    """The log-probability of each token of a reply. ``row`` ends with the logits of its last token."""
    logprobs = row[-len(reply) - 1 : -1].log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(list(reply), device=row.device)[:, None])[:, 0]


def withheld(logprobs: Float[Tensor, " token"], mark: int = 0, opening: Callable[[Tensor], Tensor] = suppression) -> Float[Tensor, ""]:
    """How likely a withholding reply is, from the log-probabilities of its tokens; its first ``mark`` tokens close a thought. ``opening``
    says how likely its opening is: ``suppression`` or ``per_token``."""
    return opening(logprobs) + (closing(logprobs[:mark]) if mark else 0.0)


def guessed(row: Float[Tensor, "kept vocab"], length: int, first: int, chance: torch.Generator) -> Float[Tensor, ""]:
    """A score whose gradients have the Fisher information of the last ``length`` predictions as their second moment, each token weighted as
    in ``drift``: the log-probability of a token drawn at each position, times the root of its weight (Martens 2020, section 5)."""
    logprobs = row[-length - 1 : -1].log_softmax(-1)
    drawn = torch.multinomial(logprobs.detach().exp().cpu(), 1, generator=chance).to(row.device)
    weights = torch.full((length,), 0.5 / length, device=row.device)
    weights[first] += 0.5
    return (weights.sqrt() * logprobs.gather(-1, drawn)[:, 0]).sum()
