"""An edited checkpoint's proof, what the report says of it and of two checkpoints' weights, as typed records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from abliterate.files import Count, May, Number, Record, Several

PROOF_SCHEMA: Final = "abliterate/abliteration/2"

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

    model_config = ConfigDict(extra="allow")

    ids: Several[str]
    name: str | None
    link: str | None
    files: Several[str]
    bases: Several[str] = ()


NO_LICENCE = Licence(ids=(), name=None, link=None, files=())


class SelfCheck(Record):
    """The results on a small copy of the architecture. ``before`` and ``left``: the largest part of the stream along the direction before
    and after the edit. ``logits``: the relative distance to the logits with hooks; ``kl``: the same as KL in nats per token."""

    model_config = ConfigDict(extra="allow")

    architecture: str
    layout: str
    blocks: Count
    before: Number
    left: Number
    logits: Number
    kl: Number
    transformers: str
    torch: str


class TensorProof(Record):
    """A tensor's component along the directions before and after the edit, as it enters the stream.

    ``left``: ‖R W'‖ / ‖R W‖, the share of the component that is left (1 - strength if exact). ``error``: the distance of ‖R W'‖ from
    ``aim``, relative to ‖W‖; the tolerance of the stored dtype applies to it. ``rounding`` and ``plain_rounding``: see ``Before``.
    """

    model_config = ConfigDict(extra="allow")

    name: str
    kind: str
    shape: Several[int]
    dtype: str
    strength: Number
    before: Number
    aim: Number
    after: Number
    left: Number
    error: Number
    blake3_before: str
    blake3_after: str
    rounding: Number | None
    plain_rounding: Number | None


class Worst(Record):
    """The largest ``left`` and the largest ``error`` of all edited tensors."""

    left: Number
    error: Number

    @classmethod
    def of(cls, tensors: Iterable[TensorProof]) -> Worst:
        """The largest figures of these tensors, 0 if there are none."""
        listed = list(tensors)
        return cls(left=max((t.left for t in listed), default=0.0), error=max((t.error for t in listed), default=0.0))


class Proof(Record):
    """abliteration.json: the edit, the self-check of the architecture, and every edited tensor.

    Keys that ``verify`` doesn't need may be absent: earlier versions did not write all of them. Keys of later versions are kept.
    """

    model_config = ConfigDict(extra="allow")

    format: Literal["abliterate/abliteration/2"] = Field(validation_alias="schema", serialization_alias="schema")
    abliterate: May[str] = None
    base_model: str
    base_revision: str | None = None
    licence: Licence | None = None
    embedding: EmbeddingRecord
    norms: str
    unpacked: Several[str]
    formula: May[str] = None
    self_check: May[SelfCheck] = None
    tensors: Several[TensorProof]
    worst: Worst
    not_edited: Several[str]

    @property
    def summary(self) -> EditSummary:
        """The report's summary of the edit."""
        return EditSummary(
            tensors=len(self.tensors),
            worst_left=self.worst.left,
            worst_error=self.worst.error,
            embedding=self.embedding,
            not_edited=self.not_edited,
        )


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
