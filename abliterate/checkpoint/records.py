"""What the report and the card say of an edited checkpoint, and of two checkpoints' weights, as typed records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from abliterate.files import Count, Number, Record, Several

Verdict = Literal["directional", "other", "identical"]


class EmbeddingRecord(Record):
    """What was done to the input embedding, and whether it is the unembedding too."""

    policy: str = Field(description="auto, edit, skip or untie.")
    tied_to_unembedding: bool = Field(description="Whether the two share their weights.")


class EditSummary(Record):
    """The edit and its proof."""

    tensors: Count = Field(description="Number of edited tensors.")
    worst_left: Number = Field(
        description="Largest share of a component along the direction that is left in a tensor; 1 - strength if exact."
    )
    worst_error: Number = Field(description="Largest distance of what is left from what should be, relative to the tensor's norm.")
    embedding: EmbeddingRecord
    not_edited: Several[str] = Field(description="Tensors that write into the stream and were left as they are, with the reason.")


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

    min: Number = Field(description="The least.")
    median: Number = Field(description="The median.")
    max: Number = Field(description="The largest.")


class BlockWeights(Record):
    """How well the directions of one block's writers agree."""

    layer: Count = Field(description="The block.")
    writers: Count = Field(description="Number of changed writers.")
    agreement: Number = Field(description="Smallest cosine between a writer's direction and that of the clearest writer.")
    explained: Number = Field(description="Share of their directions that one common direction explains.")
    cos_to_mean: Number = Field(description="Cosine between that direction and the one that all blocks have in common.")
    left: Spread | None = Field(description="Share of the component along it that is left.")
    strength: Spread | None = Field(description="Share of it that was removed; negative: added.")


class OverBlocks(Record):
    """How well one direction fits all blocks."""

    explained: Number = Field(description="Share of the blocks' directions that it explains.")
    cos_min: Number = Field(description="Least cosine of a block's direction with it.")
    cos_median: Number = Field(description="Median cosine.")


class WeightsCompared(Record):
    """What differs between two checkpoints' weights."""

    compared: Literal[True] = Field(description="They were.")
    verdict: Verdict = Field(description="What the difference looks like.")
    reasons: Several[str] = Field(description="Why, a sentence each.")
    changed: Mapping[str, Count] = Field(description="Changed tensors by kind.")
    same: Mapping[str, Count] = Field(description="Equal tensors by kind.")
    recast: Count = Field(description="Tensors with the same values in another dtype.")
    only_base: Count = Field(description="Tensors that only base has.")
    only_derived: Count = Field(description="Tensors that only the derived checkpoint has.")
    reshaped: Count = Field(description="Tensors of other shapes.")
    relative: Spread | None = Field(description="Norm of the difference over the norm of base, by changed tensor.")
    rank: Spread | None = Field(description="Rank of the difference, by changed matrix.")
    left: Spread | None = Field(description="Share of the component along its direction that is left, by changed writer.")
    strength: Spread | None = Field(description="Share of it that was removed, by changed writer.")
    layers: Several[BlockWeights] = Field(description="Each block with changed writers.")
    over_layers: OverBlocks | None = Field(description="Null if no writer changed.")


class WeightsNotCompared(Record):
    """Why two models' weights were not compared."""

    compared: Literal[False] = Field(description="They were not.")
    why: str = Field(description="The reason.")


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
