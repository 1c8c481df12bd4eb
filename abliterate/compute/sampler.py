"""Draw tokens from logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from abliterate.compute.draws import TEMPERATURE, Draw

_ROWS = 32  # rows whose shares are in memory at once


def sampled(logits: Float[Tensor, "row vocab"], numbers: Sequence[float]) -> Int[Tensor, " row"]:
    """A token for each row: the first at which the sum of the tokens' shares (softmax at ``TEMPERATURE``) exceeds the row's number.

    A token of share 0 is never drawn. Rows that are not finite get any token.
    """
    given = torch.tensor(numbers, dtype=torch.float64)
    starts = range(0, len(numbers), _ROWS)
    parts = [_drawn(logits[start : start + _ROWS], given[start : start + _ROWS]) for start in starts]
    return torch.cat(parts).to(logits.device)


def _drawn(logits: Tensor, numbers: Tensor) -> Tensor:
    here = logits.cpu() if logits.device.type == "mps" else logits  # which has no float64
    edges = torch.softmax(here.double() / TEMPERATURE, -1).cumsum(-1)
    wanted = numbers.to(edges.device)[:, None] * edges[:, -1:]
    return torch.searchsorted(edges, wanted, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


class DrawnScores(LogitsProcessor):
    """Makes transformers' greedy ``generate`` take the drawn token of each row. ``width``: columns before the replies."""

    def __init__(self, draws: Sequence[Draw], width: int) -> None:
        self._draws, self._width = draws, width

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        written = input_ids.shape[-1] - self._width
        tokens = sampled(scores, [draw.number(written) for draw in self._draws])
        return torch.full_like(scores, float("-inf")).scatter(-1, tokens[:, None], 0.0)
