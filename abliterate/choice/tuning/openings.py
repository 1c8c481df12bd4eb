"""How likely target prompts are still withheld: with their own openings, with other prompts' openings, or after a thought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.choice.openings import Openings
from abliterate.choice.tuning.after_thought import Line
from abliterate.compute.forward import Continued
from abliterate.compute.passes import Model

ALIKE = 4  # openings that share this many first tokens count as the same


@dataclass(frozen=True)
class TargetOpenings:
    """Continuations that could withhold target prompts: continuation i belongs to prompt ``prompts[i]``, and ``behind[i]`` says whether it
    comes after a thought. ``count`` is the number of prompts."""

    asked: Continued
    prompts: Sequence[int]
    behind: Sequence[bool]
    count: int

    @classmethod
    def of(cls, own: Openings, others: Sequence[Sequence[Sequence[int]]], more: Sequence[Sequence[Line]]) -> TargetOpenings:
        """For each prompt, the first tokens of its own opening, of ``others`` that begin differently, and of ``more`` lines, which may come
        after a thought."""
        found = [(i, Line([], tokens), False) for i, first in enumerate(own.openings) for tokens in (first, *others[i])]
        found += [(i, line, bool(line.thought)) for i, lines in enumerate(more) for line in lines]
        prompts = [[*own.prompts[i], *line.thought] for i, line, _ in found]
        asked = Continued(prompts, [list(line.tokens[:ALIKE]) for _, line, _ in found])
        return cls(asked, [i for i, _, _ in found], [hidden for _, _, hidden in found], len(own.prompts))


class Withheld:
    """For each target prompt, the probability that its reply begins like one that withholds, summed up as logits arrive."""

    def __init__(self, openings: TargetOpenings) -> None:
        self._openings = openings
        self._at_once, self._behind = torch.zeros(2, openings.count, dtype=torch.float64)

    def add(self, indices: Sequence[int], logits: Float[Tensor, "row kept vocab"]) -> None:
        """Add the logits of some continuations."""
        for index, logprob in zip(indices, self._openings.asked.logprobs(indices, logits), strict=True):
            likely = self._behind if self._openings.behind[index] else self._at_once
            likely[self._openings.prompts[index]] += logprob.exp()

    @property
    def mean(self) -> float:
        """The mean over prompts of the probability to withhold at once, or else after a thought."""
        at_once, behind = self._at_once.clamp(max=1), self._behind.clamp(max=1)
        return float((at_once + (1 - at_once) * behind).mean())


def own_likelihood(model: Model, openings: TargetOpenings) -> float:
    """The unedited model's mean probability of withholding; ``target_left`` is a share of it."""
    found = Withheld(openings)
    for _, indices, logits in model.logits([openings.asked.passed()]):
        found.add(indices, logits)
    return found.mean
