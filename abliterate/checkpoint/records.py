"""What the report and the card say of an edited checkpoint, and of two checkpoints' weights, as typed records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from abliterate.files import Count, Number, Record, Several

Verdict = Literal["directional", "other", "identical"]


class EmbeddingRecord(Record):
    """What was done to the input embedding, and whether it is the unembedding too."""

    policy: str
    tied_to_unembedding: bool


class EditSummary(Record):
    """The edit and its proof."""

    tensors: Count
    worst_left: Number
    worst_error: Number
    embedding: EmbeddingRecord
    not_edited: Several[str]


class Licence(Record):
    """The licence that a model's folder states.

    ``ids``: the Hub's ids of its licences (empty: the card states none). ``name`` and ``link``: what the card adds to the id ``other``.
    ``files``: the licence files in the folder. ``bases``: the models that the card names as its base.
    """

    ids: Several[str]
    name: str | None
    link: str | None
    files: Several[str]
    bases: Several[str] = ()


NO_LICENCE = Licence(ids=(), name=None, link=None, files=())


class Spread(Record):
    """The least, the median and the largest value."""

    min: Number
    median: Number
    max: Number


class BlockWeights(Record):
    """How well the directions of one block's writers agree."""

    layer: Count
    writers: Count
    agreement: Number
    explained: Number
    cos_to_mean: Number
    left: Spread | None
    strength: Spread | None


class OverBlocks(Record):
    """How well one direction fits all blocks."""

    explained: Number
    cos_min: Number
    cos_median: Number


class WeightsCompared(Record):
    """What differs between two checkpoints' weights."""

    compared: Literal[True]
    verdict: Verdict
    reasons: Several[str]
    changed: Mapping[str, Count]
    same: Mapping[str, Count]
    recast: Count
    only_base: Count
    only_derived: Count
    reshaped: Count
    relative: Spread | None
    rank: Spread | None
    left: Spread | None
    strength: Spread | None
    layers: Several[BlockWeights]
    over_layers: OverBlocks | None


class WeightsNotCompared(Record):
    """Why two models' weights were not compared."""

    compared: Literal[False]
    why: str


Weights = Annotated[WeightsCompared | WeightsNotCompared, Field(discriminator="compared")]


class Reshaped(Record):
    """A tensor that has different shapes in the two checkpoints."""

    name: str
    base: Several[int]
    derived: Several[int]


class TensorRow(Record):
    """A tensor that differs; ``TensorChange`` explains the figures."""

    name: str
    kind: str
    layer: int | None
    shape: Several[int]
    dtype: str
    writer: bool
    relative: Number | None
    rank: int | None
    values: Several[Number]
    first_share: Number | None
    floor: Number | None
    rescaled: str | None
    left: Number | None
    strength: Number | None
    own: Number | None
    through_norm: bool | None


class WeightsFile(Record):
    """weights.json: the verdict, and every tensor that differs."""

    summary: Weights
    recast: Several[str]
    only_base: Several[str]
    only_derived: Several[str]
    reshaped: Several[Reshaped]
    tensors: Several[TensorRow]
