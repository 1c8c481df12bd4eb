"""A starting point for the tuner: in each block, the direction whose removal reduces refusals most for the drift that it causes.

If a block writes y_t at token t and its component along r is removed, a score changes by -sum_t (y_t.r)(g_t.r) to first order, where g_t is
the gradient of the score with respect to what the block adds to the residual stream. So one forward and backward pass over the model's own
openings gives the effect of every direction: -r'Ar, with A = sum_t sym(g_t y_t'). The cost appears only in second order: the KL divergence
from the unedited model is zero for no edit, and grows with the Fisher information, whose gradients come from sampled tokens (Amari 1998).
The square of (y_t.r)(g_t.r) is at most (y_t.r)^2 |g_t|^2, so C = sum_t |g_t|^2 y_t y_t' bounds the cost over the tokens. The r that
maximises r'Ar / r'Cr is the first eigenvector of a generalised eigenvalue problem.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve, eigh
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from abliterate.choice.openings import OPENING_TOKENS
from abliterate.choice.tuning.examples import Examples
from abliterate.choice.tuning.losses import guessed, likely, per_token, withheld
from abliterate.choice.tuning.metric import damped
from abliterate.compute.forward import Continued
from abliterate.compute.memory import free
from abliterate.compute.passes import NO_INTERVENTION, Advance, Ids, no_progress
from abliterate.compute.whole.gradients import logits, micro_batch
from abliterate.compute.whole.model import WholeModel
from abliterate.compute.whole.written import written
from abliterate.model.edit import Edit, edit_from_rows
from abliterate.model.layouts import COMPONENTS
from abliterate.prompts.promptset import evenly

ASKED = 36  # examples per role
RIDGES = (1e-3, 1e-2, 1e-1)  # ``metric.damped``; so few tokens leave C undetermined in most directions
_SHARE = 0.25  # share of the free memory for the sums over tokens

# The score of an example, from its index and the logits that end with its last token.
Score = Callable[[int, Float[Tensor, "kept vocab"]], Float[Tensor, ""]]
Rows = Float[Tensor, "n d_model"]
Matrix = Float[Tensor, "d_model d_model"]


def first_order(
    model: WholeModel, train: Examples, first: int, away: Float[Tensor, "layer n d_model"] | None, seed: int, advance: Advance = no_progress
) -> tuple[list[Edit], Float[Tensor, "layer d_model d_model"] | None]:
    """Edits of the blocks from ``first`` up, one per ridge in ``RIDGES``, and each block's C (zero below ``first``; None if there is too
    little memory to keep them). A block without a direction that reduces refusals is left alone.

    Lowering the keep prompts' refusals by one nat cancels lowering the target's by one nat. ``away``: orthonormal rows that the directions
    stay orthogonal to. ``advance`` counts the examples that ran forward and backward, ``work_of`` in total.
    """
    layers, width = model.folder.layers, model.folder.d_model
    rows = torch.eye(1, width).repeat(len(RIDGES), layers, 1)
    strength = torch.zeros(len(RIDGES), layers, len(COMPONENTS))
    costs = torch.zeros(layers, width, width) if layers <= blocks_at_once(width) else None
    for part in _parts(model, first):
        gain, cost = _effects(model, train, part, seed, advance)
        for place, layer in enumerate(part):
            if costs is not None:
                costs[layer] = cost[place]
            for number, ridge in enumerate(RIDGES):
                row, gained = best(gain[place], cost[place], ridge, None if away is None else away[layer])
                if gained > 0:
                    rows[number, layer], strength[number, layer] = row, 1.0
    return [edit_from_rows(own[:, None], much) for own, much in zip(rows, strength, strict=True)], costs


def work_of(model: WholeModel, train: Examples, first: int) -> int:
    """How many examples run forward and backward through the model."""
    stays = sum(min(ASKED, train.counts[role]) * (2 if role == "keep" else 1) for role in train.stays)
    return (sum(len(marks) for _, marks in ways(train)) + stays) * len(_parts(model, first))


def ways(train: Examples) -> list[tuple[Continued, list[int]]]:
    """Target prompts with lines that withhold them, by kind, and how many first tokens of each line close a thought. All kinds are used,
    because suppressing only a prompt's own opening lets the model withhold in other words."""
    chosen = evenly(range(len(train.target.prompts)), ASKED)
    found: list[tuple[Continued, list[int]]] = []
    for kind in zip(*map(train.kinds, chosen), strict=True):  # each prompt's lines of one kind
        lines = [(i, each[n % len(each)]) for n, (i, each) in enumerate(zip(chosen, kind, strict=True)) if each]
        asked = Continued([[*train.target.prompts[i], *line.thought] for i, line in lines], [line.tokens for _, line in lines])
        found.append((asked, [0 if found else train.marks[i] for i, _ in lines]))
    return [(asked, marks) for asked, marks in found if marks]


def best(gain: Matrix, cost: Matrix, ridge: float, away: Rows | None = None) -> tuple[Float[Tensor, " d_model"], float]:
    """The unit row r that maximises r'Ar / r'(C + lambda I)r, and its r'Ar. A is the symmetric part of ``gain``, and C + lambda I is
    ``damped``. ``away``: orthonormal rows that r stays orthogonal to."""
    a = (gain.double() + gain.double().T) / 2
    c = damped(cost, ridge) if cost.any() else torch.eye(len(a), dtype=torch.float64)
    rest = _complement(away, len(a))
    row = rest @ torch.from_numpy(_largest((rest.T @ a @ rest).numpy(), (rest.T @ c @ rest).numpy()))
    row = row / row.norm()
    return row.float(), float(row @ a @ row)


def _complement(away: Rows | None, width: int) -> Float[Tensor, "d_model rest"]:
    """An orthonormal basis of the complement of the rows; rows of zeros are ignored."""
    if away is None or not bool((real := away.any(-1)).any()):
        return torch.eye(width, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(away[real].double().T, mode="complete")[0]
    return basis[:, int(real.sum()) :]


def _largest(a: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The generalised eigenvector with the largest eigenvalue, for a symmetric ``a`` and a positive definite ``c``."""
    factor = cho_factor(c)
    inverse = LinearOperator(c.shape, matvec=lambda x: cho_solve(factor, x), dtype=c.dtype)
    try:
        _, vectors = eigsh(a, 1, c, which="LA", Minv=inverse, v0=np.ones(len(a)))
    except ArpackError:  # for example if the matrix is zero or two eigenvalues are equal
        _, vectors = eigh(a, c, subset_by_index=(len(a) - 1, len(a) - 1))
    found: np.ndarray = vectors[:, 0]
    return found


def _parts(model: WholeModel, first: int) -> list[range]:
    """The blocks from ``first`` up, in ranges whose sums fit into memory together."""
    layers, width = model.folder.layers, model.folder.d_model
    at_once = max(1, blocks_at_once(width))
    return [range(start, min(start + at_once, layers)) for start in range(first, layers, at_once)]


def blocks_at_once(width: int) -> int:
    """For how many blocks two matrices fit into memory: A and C, or later C and the tuner's coordinates."""
    return int(_SHARE * free(torch.device("cpu")) / (2 * 4 * width * width))


def _effects(
    model: WholeModel, train: Examples, layers: range, seed: int, advance: Advance
) -> tuple[Float[Tensor, "part d_model d_model"], Float[Tensor, "part d_model d_model"]]:
    """For each block in ``layers``, the sums over tokens A (not yet symmetric) and C."""
    gain, cost = (torch.zeros(len(layers), model.folder.d_model, model.folder.d_model) for _ in range(2))
    chance = torch.Generator().manual_seed(seed)

    def add(sums: Tensor, share: float, squared: bool, asked: Continued, score: Score) -> None:
        sequences = [[*prompt, *reply] for prompt, reply in zip(asked.prompts, asked.continuations, strict=True)]
        longest = max(map(len, asked.continuations), default=0)
        micro = micro_batch(model, max(map(len, sequences), default=1))
        with written(model, layers) as found:
            for indices, rows in logits(model, NO_INTERVENTION, sequences, longest + 1, micro):
                torch.stack([score(index, row) for index, row in zip(indices, rows, strict=True)]).sum().backward()  # type: ignore[no-untyped-call]
                for place, layer in enumerate(layers):
                    for wrote, gradient in found.of(layer):
                        left = gradient.square().sum(-1, keepdim=True) * wrote if squared else gradient
                        sums[place] += (share / len(sequences) * (left.T @ wrote)).cpu()
                found.forget()
                advance(len(indices))

    refused = ways(train)
    for target, marks in refused:
        add(gain, 1 / len(refused), False, target, partial(_withheld, target.continuations, marks))
    for role, stay in train.stays.items():
        asked = Continued(evenly(stay.asked.prompts, ASKED), evenly(stay.asked.continuations, ASKED))
        firsts = evenly([stay.first(i) for i in range(train.counts[role])], ASKED)
        add(cost, 1 / len(train.stays), True, asked, partial(_guessed, asked.continuations, firsts, chance))
        if role == "keep":
            led = [[*ids, *reply[:first]] for ids, reply, first in zip(asked.prompts, asked.continuations, firsts, strict=True)]
            kept = Continued(led, [reply[first:][:OPENING_TOKENS] for reply, first in zip(asked.continuations, firsts, strict=True)])
            add(gain, -1.0, False, kept, partial(_withheld, kept.continuations, [0] * len(led)))
    return gain, cost


def _withheld(replies: Ids, marks: Sequence[int], index: int, row: Float[Tensor, "kept vocab"]) -> Float[Tensor, ""]:
    return withheld(likely(row, replies[index]), marks[index], per_token)


def _guessed(
    replies: Ids, firsts: Sequence[int], chance: torch.Generator, index: int, row: Float[Tensor, "kept vocab"]
) -> Float[Tensor, ""]:
    return guessed(row, len(replies[index]), firsts[index], chance)
