"""Measure edits on examples, which gives the points of the front. Forward passes with hooks, all edits in one pass over the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.choice.front import Point
from abliterate.choice.tuning.examples import Examples, Stay
from abliterate.choice.tuning.losses import divergences, lumped
from abliterate.choice.tuning.openings import Withheld
from abliterate.compute.passes import Advance, Intervention, Model, Pass, no_progress
from abliterate.measures.predictions import with_rest
from abliterate.model.edit import Edit
from abliterate.prompts import Role


def measure(model: Model, edits: Sequence[Edit], examples: Examples, advance: Advance = no_progress) -> list[Point]:
    """How much of the target each edit leaves, and how far it moves what should stay.

    ``target_left`` is the mean probability that the reply to a target prompt begins like one that withholds, as a share of the unedited
    model's. Such a reply begins with the first tokens of the prompt's own opening or of another prompt's opening; or, if the model thinks,
    with a withholding line after a thought.
    """
    interventions = [Intervention(edit) for edit in edits]
    found = [_Measured.of(examples) for _ in edits]
    passes: list[Pass] = []
    readers: list[tuple[int, Role]] = []
    for which, intervention in enumerate(interventions):
        passes += [examples.openings.asked.passed(intervention), *(stay.asked.passed(intervention) for stay in examples.stays.values())]
        readers += [(which, "target"), *((which, role) for role in examples.stays)]
    for number, indices, logits in model.logits(passes, advance):
        which, role = readers[number]
        if role == "target":
            found[which].withheld.add(indices, logits)
        else:
            stay = examples.stays[role]
            for index, kl in moved(stay, indices, logits):
                found[which].first[role][index], found[which].along[role][index] = kl[stay.first(index)].cpu(), kl.mean().cpu()
    return [measured.point(edit, examples.likely) for measured, edit in zip(found, edits, strict=True)]


def target_left(model: Model, edits: Sequence[Edit], examples: Examples, advance: Advance = no_progress) -> list[float]:
    """Only the ``target_left`` of each edit."""
    found = [Withheld(examples.openings) for _ in edits]
    for which, indices, logits in model.logits([examples.openings.asked.passed(Intervention(edit)) for edit in edits], advance):
        found[which].add(indices, logits)
    return [withheld.mean / examples.likely for withheld in found]


def measured_on(examples: Examples) -> list[list[int]]:
    """Every sequence that runs through the model for one edit."""
    asked = [examples.openings.asked, *(stay.asked for stay in examples.stays.values())]
    return [list(ids) for each in asked for ids in each.passed().sequences]


def measuring_work(examples: Examples) -> int:
    """How many sequences run through the model for one edit."""
    return len(examples.openings.prompts) + sum(len(stay.asked.prompts) for stay in examples.stays.values())


def moved(stay: Stay, indices: Sequence[int], logits: Float[Tensor, "row kept vocab"]) -> list[tuple[int, Float[Tensor, " token"]]]:
    """From the logits of some rows, the index of each prompt and the KL (nats) at each token of its continuation."""
    found = []
    for index, logprobs in stay.asked.along(indices, logits):
        place = stay.predicted.place(index)
        tokens, base = (t[place].to(logits.device) for t in (stay.predicted.tokens, stay.predicted.logprobs))
        found.append((index, divergences(with_rest(base), lumped(logprobs, tokens))))
    return found


@dataclass
class _Measured:
    """For one edit: how likely target prompts are withheld, and by role each prompt's KL at the first informative token and per token."""

    withheld: Withheld
    first: dict[Role, Tensor]
    along: dict[Role, Tensor]

    @classmethod
    def of(cls, examples: Examples) -> _Measured:
        sizes = {role: len(stay.asked.prompts) for role, stay in examples.stays.items()}
        return cls(Withheld(examples.openings), *({role: torch.zeros(size) for role, size in sizes.items()} for _ in range(2)))

    def point(self, edit: Edit, likely: float) -> Point:
        kept = [along.mean() for role, along in self.along.items() if role != "harmless"]
        return Point(
            target_left=self.withheld.mean / likely,
            keep_kl=float(torch.stack(kept).mean()) if kept else 0.0,
            kl=float(self.first["harmless"].mean()),
            kl_sequence=float(self.along["harmless"].mean()),
            edits=float(edit.strength.sum()),
        )
