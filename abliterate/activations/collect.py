"""Collect prompt sets' activations: one pass over the prompts, statistics on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.activations.statistics import RunningMoments
from abliterate.errors import InputError
from abliterate.model.passes import Advance, Ids, Model, Pass, unheard


@dataclass(frozen=True)
class SetActivations:
    """Statistics of one prompt set; the first axis of the means runs over positions -1, -2, ... (last token first).

    ``vectors`` holds every position after collection, and the last one only when read back from a file.
    """

    mean: Float[Tensor, "position layer_plus_1 d_model"]
    second_moment: Float[Tensor, "position layer_plus_1 d_model"]
    vectors: Float[Tensor, "prompt kept_position layer_plus_1 d_model"]

    @property
    def last(self) -> Float[Tensor, "prompt layer_plus_1 d_model"]:
        """The vectors at the last position."""
        return self.vectors[:, 0]

    def only(self, chosen: Sequence[int]) -> SetActivations:
        """The same statistics over some of the prompts, from their vectors."""
        picked = self.vectors[list(chosen)].double()
        return SetActivations(picked.mean(0).float(), picked.square().mean(0).float(), picked.float())


def collect(model: Model, groups: Mapping[str, Ids], positions: int, advance: Advance = unheard) -> dict[str, SetActivations]:
    """Activations of groups of encoded prompts at their last ``positions`` tokens, all groups in one pass over the weights.

    Raises InputError where a stream is not finite, naming the first layer at which it is so.
    """
    shortest = min((len(ids) for prompts in groups.values() for ids in prompts), default=positions)
    if shortest < positions:
        raise InputError(f"--positions {positions}: the shortest prompt has only {shortest} tokens")
    layers, names = model.folder.layers + 1, list(groups)
    moments = [[RunningMoments((positions, model.folder.d_model)) for _ in range(layers)] for _ in names]
    vectors = [torch.empty(len(groups[name]), positions, layers, model.folder.d_model) for name in names]

    def seen(number: int, indices: Sequence[int], index: int, stream: Float[Tensor, "row position d_model"]) -> None:
        if not torch.isfinite(stream).all():
            raise InputError(_not_finite(model, index))
        last_first = stream.flip(1)
        moments[number][index].update(last_first)
        vectors[number][list(indices), :, index] = last_first

    model.watch([Pass(groups[name]) for name in names], positions, seen, advance)
    return {name: SetActivations(*_moments(moments[i]), vectors[i]) for i, name in enumerate(names)}


def _moments(by_layer: Sequence[RunningMoments]) -> tuple[Tensor, Tensor]:
    """Mean and second moment, [position, layer + 1, d_model]."""
    return torch.stack([m.mean() for m in by_layer], dim=1), torch.stack([m.second_moment() for m in by_layer], dim=1)


def _not_finite(model: Model, index: int) -> str:
    where = "the embedding's output" if index == 0 else f"the residual stream after block {index - 1}"
    return (
        f"{model.folder.path}: {where} holds NaN or infinite values; the checkpoint is damaged, or the type it is computed in is too "
        "narrow for it (try --dtype float32)"
    )
