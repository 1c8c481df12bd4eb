"""Collect activations of prompt sets in one pass over the prompts and the weights, as running statistics."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from abliterate.compute.distributed import DistributedModel
from abliterate.compute.passes import Advance, Ids, Pass, Seen, no_progress
from abliterate.directions.moments import RunningMoments
from abliterate.errors import InputError
from abliterate.model.folder import ModelFolder

K = TypeVar("K", bound=Hashable)  # what names a group or a part of one


@dataclass(frozen=True)
class SetActivations:
    """Statistics of one prompt set. The first axis of the means runs over positions -1, -2, ... (last token first).

    ``vectors`` holds the last position, and more positions if ``Group.kept`` is above one.
    """

    mean: Float[Tensor, "position layer_plus_1 d_model"]
    second_moment: Float[Tensor, "position layer_plus_1 d_model"]
    vectors: Float[Tensor, "prompt kept_position layer_plus_1 d_model"]

    @property
    def last(self) -> Float[Tensor, "prompt layer_plus_1 d_model"]:
        """The vectors at the last position."""
        return self.vectors[:, 0]


@dataclass(frozen=True)
class Group(Generic[K]):
    """Prompts (token ids). ``parts`` names subsets, by index, that get separate statistics. The vectors of the last ``kept`` positions are
    stored."""

    prompts: Ids
    parts: Mapping[K, Sequence[int]] = field(default_factory=dict)
    kept: int = 1

    def share(self, start: int, step: int) -> Group[K]:
        """Every ``step``-th prompt."""
        mine = range(start, len(self.prompts), step)
        parts = {name: [i // step for i in chosen if i % step == start] for name, chosen in self.parts.items()}
        return replace(self, prompts=[self.prompts[i] for i in mine], parts=parts)


@dataclass
class Collected(Generic[K]):
    """The results of one process: moments by group or part and by activation index, and the vectors of each group."""

    moments: dict[K, list[RunningMoments]]
    vectors: dict[K, Float[Tensor, "prompt kept_position layer_plus_1 d_model"]]

    def found(self, name: K, chosen: Sequence[int] | None, group: K) -> SetActivations:
        """The statistics of a group, or of the part of it with the indices ``chosen``."""
        by_layer, vectors = self.moments[name], self.vectors[group]
        return SetActivations(
            torch.stack([m.mean() for m in by_layer], dim=1),
            torch.stack([m.second_moment() for m in by_layer], dim=1),
            vectors if chosen is None else vectors[list(chosen)],
        )


@runtime_checkable
class Watchable(Protocol):
    """A model that reports its residual streams; see ``Model.watch``."""

    @property
    def folder(self) -> ModelFolder: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def watch(self, passes: Sequence[Pass], last: int, seen: Seen, advance: Advance = no_progress) -> None: ...


def collect(model: Watchable, groups: Mapping[K, Group[K]], positions: int, advance: Advance = no_progress) -> dict[K, SetActivations]:
    """Activations of groups of prompts at their last ``positions`` tokens, by the names of the groups and their parts.

    All prompts run in one pass over the weights; with several processes, process i of n runs prompts i, i + n, i + 2n, … Raises InputError
    if a prompt has fewer than ``positions`` tokens, or if the residual stream is not finite; the message names the first such layer.
    """
    shortest = min((len(ids) for group in groups.values() for ids in group.prompts), default=positions)
    if shortest < positions:
        raise InputError(f"--positions {positions}: the shortest prompt has only {shortest} tokens")
    if isinstance(model, DistributedModel):
        shares = [({name: group.share(rank, model.size) for name, group in groups.items()}, positions) for rank in range(model.size)]
        gathered = _merged(model.on_all(gather, shares, advance), groups)
    else:
        gathered = gather(model, groups, positions, advance)
    found = {name: gathered.found(name, None, name) for name in groups}
    return found | {part: gathered.found(part, chosen, name) for name, g in groups.items() for part, chosen in g.parts.items()}


def gather(model: Watchable, groups: Mapping[K, Group[K]], positions: int, advance: Advance = no_progress) -> Collected[K]:
    """``collect`` for the prompts of one process."""
    layers, width, names = model.folder.layers + 1, model.folder.d_model, list(groups)
    keys = [*names, *(part for group in groups.values() for part in group.parts)]
    gathered = Collected(
        {key: [RunningMoments((positions, width)) for _ in range(layers)] for key in keys},
        {name: torch.empty(len(groups[name].prompts), groups[name].kept, layers, width) for name in names},
    )
    members = [{part: frozenset(chosen) for part, chosen in groups[name].parts.items()} for name in names]

    def seen(number: int, indices: Sequence[int], index: int, stream: Float[Tensor, "row position d_model"]) -> None:
        name, last_first = names[number], stream.flip(1)
        gathered.moments[name][index].update(last_first)
        for part, chosen in members[number].items():
            rows = [row for row, prompt in enumerate(indices) if prompt in chosen]
            gathered.moments[part][index].update(last_first[rows])
        gathered.vectors[name][list(indices), :, index] = last_first[:, : groups[name].kept]

    model.watch([Pass(groups[name].prompts) for name in names], positions, seen, advance)
    return gathered


def _merged(shares: Sequence[Collected[K]], groups: Mapping[K, Group[K]]) -> Collected[K]:
    """Merge the results of several processes."""
    first, *others = shares
    for other in others:
        for name, by_layer in first.moments.items():
            for moments, more in zip(by_layer, other.moments[name], strict=True):
                moments.add(more)
    vectors = {}
    for name, group in groups.items():
        vectors[name] = torch.empty(len(group.prompts), *first.vectors[name].shape[1:])
        for rank, share in enumerate(shares):
            vectors[name][rank :: len(shares)] = share.vectors[name]
    return Collected(first.moments, vectors)
