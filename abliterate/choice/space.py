"""The edits that a search without gradients goes through: which directions, and how strongly along the depth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.choice.candidates import Candidate
from abliterate.directions.interpolated import interpolated
from abliterate.errors import InputError
from abliterate.model.edit import Edit, unit
from abliterate.model.layouts import COMPONENTS

Parameters = Mapping[str, str | float]

DIRECTION, LAYER = "direction", "layer"
PROFILE = ("max_weight", "position", "min_weight", "distance")
START_STRENGTHS = (1.0, 0.7)
_NARROWEST = 0.5  # blocks: a profile of this half-width holds one block


@dataclass(frozen=True)
class Source:
    """Directions that the search may take. ``edit`` has them, at the strengths that a profile is multiplied with.

    ``along``: the blocks between whose directions one for all blocks is interpolated; empty where each block has its own.
    """

    name: str
    edit: Edit
    along: tuple[int, ...] = ()


class Space:
    """The parameters of an edit, and the edit that they stand for.

    ``direction`` names a source: a candidate's rows, or one direction for all blocks, at the fractional block ``layer`` between the
    rows of a candidate that has one a block. Of each component, ``max_weight`` is the strength at block ``position``; it falls
    linearly to its share ``min_weight`` at ``distance`` blocks from there and is zero beyond (the profile of Heretic,
    https://github.com/p-e-w/heretic). Interpolated directions come from below the share ``max_layer`` of the depth.

    Raises InputError where there is no candidate.
    """

    def __init__(self, candidates: Sequence[Candidate], layers: int, max_layer: float = 1.0) -> None:
        if not candidates:
            raise InputError("there is no candidate direction to search among")
        self.layers = layers
        own = _merged(candidates)
        self.sources = {source.name: source for source in (*own, *_interpolated(own, max_layer * layers))}
        self._candidates = [(next(s.name for s in own if _alike(s.edit, c.edit)), c.edit.strength) for c in candidates]

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The parameters that are one of several words."""
        return {DIRECTION: tuple(self.sources)}

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The parameters that are numbers, with the least and the greatest."""
        last = float(max(self.layers - 1, 1))
        profile = {"max_weight": (0.0, 1.0), "position": (0.0, last), "min_weight": (0.0, 1.0), "distance": (_NARROWEST, last)}
        found = {f"{component}.{name}": profile[name] for component in COMPONENTS for name in PROFILE}
        along = [block for source in self.sources.values() for block in source.along]
        return {LAYER: (float(min(along)), float(max(along))), **found} if along else found

    @cached_property
    def starts(self) -> list[Parameters]:
        """Edits to begin with: every candidate as it is, then every one more weakly."""
        return [self._start(name, strength * share) for share in START_STRENGTHS for name, strength in self._candidates]

    @property
    def fingerprint(self) -> str:
        """Equal for spaces whose parameters mean the same kind of edit, also on machines that round differently."""
        return hashlib.sha256(json.dumps([self.choices, self.ranges]).encode()).hexdigest()[:16]

    def plan_of(self, parameters: Parameters) -> Edit:
        """The edit that the parameters stand for. Raises KeyError where one is missing."""
        source = self.sources[str(parameters[DIRECTION])]
        profiles = [profile(self.layers, *(float(parameters[f"{c}.{name}"]) for name in PROFILE)) for c in COMPONENTS]
        strength = (torch.stack(profiles, dim=-1) * source.edit.strength).clamp(0, 1)
        if not source.along:
            return replace(source.edit, strength=strength)
        one = between(source.edit.direction[:, :, 0], source.along, float(parameters[LAYER]))
        return replace(source.edit, direction=one[None, :, None].expand(self.layers, -1, -1, -1).contiguous(), strength=strength)

    def _start(self, name: str, strength: Float[Tensor, "layer component"]) -> Parameters:
        """The profiles that cover what a candidate edits, evenly at its greatest strength."""
        made: dict[str, str | float] = {DIRECTION: name}
        if LAYER in self.ranges:
            made[LAYER] = sum(self.ranges[LAYER]) / 2
        for number, component in enumerate(COMPONENTS):
            blocks = strength[:, number].nonzero()[:, 0].tolist() or [0]
            wide = max(_NARROWEST, (blocks[-1] - blocks[0]) / 2)
            values = (float(strength[:, number].max()), (blocks[0] + blocks[-1]) / 2, 1.0, wide)
            made |= {f"{component}.{parameter}": value for parameter, value in zip(PROFILE, values, strict=True)}
        return made


def profile(layers: int, max_weight: float, position: float, min_weight: float, distance: float) -> Float[Tensor, " layer"]:
    """Strengths by block: ``max_weight`` at ``position``, falling to ``min_weight`` of it at ``distance`` blocks, zero beyond."""
    away = (torch.arange(layers, dtype=torch.float64) - position).abs()
    weight = max_weight * (1 - (1 - min_weight) * away / distance)
    return torch.where(away <= distance, weight, 0.0).float()


def between(rows: Float[Tensor, "layer component d_model"], along: Sequence[int], layer: float) -> Float[Tensor, "component d_model"]:
    """The unit rows at a fractional block, between those of the nearest blocks of ``along``."""
    place = float(np.interp(layer, along, range(len(along))))
    return unit(interpolated(rows[list(along)].transpose(0, 1), place))


def _alike(one: Edit, other: Edit) -> bool:
    """Whether two edits differ in their strengths alone."""
    same = (one.embedding, one.keep_norms) == (other.embedding, other.keep_norms)
    return same and one.direction.shape == other.direction.shape and torch.equal(one.direction, other.direction)


def _merged(candidates: Sequence[Candidate]) -> list[Source]:
    """The candidates' directions, once each, at full strength in every block that one of those who share them edits."""
    made: list[Source] = []
    for candidate in candidates:
        offered = replace(candidate.edit, strength=(candidate.edit.strength > 0).float())
        place = next((i for i, source in enumerate(made) if _alike(source.edit, offered)), None)
        if place is None:
            taken = any(source.name == candidate.name for source in made)
            made.append(Source(f"{candidate.name} ({len(made)})" if taken else candidate.name, offered))
        else:
            held = made[place].edit
            made[place] = replace(made[place], edit=replace(held, strength=held.strength.maximum(offered.strength)))
    return made


def _interpolated(sources: Sequence[Source], below: float) -> list[Source]:
    """For each source with one direction a block, one direction for all blocks, from anywhere between the blocks that it offers."""
    made: list[Source] = []
    for source in sources:
        blocks = [b for b in source.edit.strength.any(-1).nonzero()[:, 0].tolist() if b < below]
        if source.edit.direction.shape[2] == 1 and not source.edit.same_everywhere() and len(blocks) > 1:
            edit = replace(source.edit, strength=torch.ones_like(source.edit.strength), embedding="skip")
            made.append(Source(f"one direction of: {source.name}", edit, tuple(blocks)))
    return made
