"""The search space of edits for the search without gradients: which directions, and which strengths along the depth."""

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
_NARROWEST = 0.5  # in blocks; a profile of this half-width covers one block


@dataclass(frozen=True)
class Source:
    """Directions that the search may use: ``edit`` holds them, with the strengths that a profile is multiplied by.

    ``along``: blocks whose directions are interpolated to one direction for all blocks; empty if each block keeps its own direction.
    """

    name: str
    edit: Edit
    along: tuple[int, ...] = ()


class Space:
    """The parameters that the search varies, and the edit for each setting of them.

    ``direction`` names a source: the rows of a candidate, or one direction for all blocks, interpolated at the fractional block ``layer``
    from a candidate with one row per block. For each component, ``max_weight`` is the strength at block ``position``; the strength falls
    linearly to ``min_weight`` times ``max_weight`` at ``distance`` blocks from there and is zero beyond (the profile of Heretic,
    https://github.com/p-e-w/heretic). Interpolated directions use only blocks below the share ``max_layer`` of the depth.

    Raises InputError if there is no candidate.
    """

    def __init__(self, candidates: Sequence[Candidate], layers: int, max_layer: float = 1.0) -> None:
        if not candidates:
            raise InputError("there is no candidate direction to search")
        self.layers = layers
        own = _merged(candidates)
        self.sources = {source.name: source for source in (*own, *_interpolated(own, max_layer * layers))}
        self._candidates = [(next(s.name for s in own if _alike(s.edit, c.edit)), c.edit.strength) for c in candidates]

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The categorical parameters, with their values."""
        return {DIRECTION: tuple(self.sources)}

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """The numeric parameters, with their minimum and maximum."""
        last = float(max(self.layers - 1, 1))
        profile = {"max_weight": (0.0, 1.0), "position": (0.0, last), "min_weight": (0.0, 1.0), "distance": (_NARROWEST, last)}
        found = {f"{component}.{name}": profile[name] for component in COMPONENTS for name in PROFILE}
        along = [block for source in self.sources.values() for block in source.along]
        return {LAYER: (float(min(along)), float(max(along))), **found} if along else found

    @cached_property
    def starts(self) -> list[Parameters]:
        """The first edits to try: every candidate at full strength, then every candidate at a lower strength."""
        return [self._start(name, strength * share) for share in START_STRENGTHS for name, strength in self._candidates]

    @property
    def fingerprint(self) -> str:
        """A hash of the parameters and their ranges. It is the same on machines that round directions differently."""
        return hashlib.sha256(json.dumps([self.choices, self.ranges]).encode()).hexdigest()[:16]

    def plan_of(self, parameters: Parameters) -> Edit:
        """The edit that the parameters describe. Raises KeyError if a parameter is missing."""
        source = self.sources[str(parameters[DIRECTION])]
        profiles = [profile(self.layers, *(float(parameters[f"{c}.{name}"]) for name in PROFILE)) for c in COMPONENTS]
        strength = (torch.stack(profiles, dim=-1) * source.edit.strength).clamp(0, 1)
        if not source.along:
            return replace(source.edit, strength=strength)
        one = between(source.edit.direction[:, :, 0], source.along, float(parameters[LAYER]))
        return replace(source.edit, direction=one[None, :, None].expand(self.layers, -1, -1, -1).contiguous(), strength=strength)

    def _start(self, name: str, strength: Float[Tensor, "layer component"]) -> Parameters:
        """Flat profiles over the blocks that a candidate edits, at its greatest strength."""
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
    """Strengths by block: ``max_weight`` at ``position``, ``min_weight`` times that at ``distance`` blocks from it, zero beyond."""
    away = (torch.arange(layers, dtype=torch.float64) - position).abs()
    weight = max_weight * (1 - (1 - min_weight) * away / distance)
    return torch.where(away <= distance, weight, 0.0).float()


def between(rows: Float[Tensor, "layer component d_model"], along: Sequence[int], layer: float) -> Float[Tensor, "component d_model"]:
    """Unit rows at a fractional block, interpolated between the two nearest blocks of ``along``."""
    place = float(np.interp(layer, along, range(len(along))))
    return unit(interpolated(rows[list(along)].transpose(0, 1), place))


def _alike(one: Edit, other: Edit) -> bool:
    """Whether two edits are equal except for their strengths."""
    same = (one.embedding, one.keep_norms) == (other.embedding, other.keep_norms)
    return same and one.direction.shape == other.direction.shape and torch.equal(one.direction, other.direction)


def _merged(candidates: Sequence[Candidate]) -> list[Source]:
    """One source per distinct set of directions, at full strength wherever a candidate with these directions edits."""
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
    """For each source with one direction per block, a source with one direction for all blocks, interpolated between the edited blocks."""
    made: list[Source] = []
    for source in sources:
        blocks = [b for b in source.edit.strength.any(-1).nonzero()[:, 0].tolist() if b < below]
        if source.edit.direction.shape[2] == 1 and not source.edit.same_everywhere() and len(blocks) > 1:
            edit = replace(source.edit, strength=torch.ones_like(source.edit.strength), embedding="skip")
            made.append(Source(f"one direction of: {source.name}", edit, tuple(blocks)))
    return made
