"""selection.json: how the edit was chosen, as typed records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, Strict, WithJsonSchema

from abliterate.files import Count, May, Number, Record, Several, Share

TuningKind = Literal["gradient", "search", "off"]
Pair = Annotated[tuple[Number, Number], Strict(False)]
PairOrNone = Annotated[tuple[Number | None, Number | None], Strict(False)]
Positive = Annotated[int | float, WithJsonSchema({"type": "number", "minimum": 0})]


class CandidateScores(Record):
    """An edit that was tried, and how it scored on val prompts (log-probabilities and KL in nats)."""

    model_config = ConfigDict(extra="allow")

    name: str
    kind: str
    estimator: str
    position: int
    layer: int
    bypass: Number | None
    stays: Number | None
    induce: Number | None
    kl: Number | None
    spill: Number | None


class Filters(Record):
    """The filters for single candidates."""

    model_config = ConfigDict(extra="allow")

    max_kl: Number
    max_kl_in_force: Number
    max_layer: Number
    max_stays: May[Number] = None
    max_spill: May[Number] = None
    induce: May[str] = None


class YardstickRecord(Record):
    """The target prompts of val, and how many of them the unedited model withholds."""

    model_config = ConfigDict(extra="allow")

    asked: Count
    withheld: Count
    base_logprob: Number | None


class Scoped(Record):
    """How the direction was separated from the keep sets' directions."""

    sets: Several[str]
    ridge: Number | None = Field(validation_alias="lambda", serialization_alias="lambda")
    share_left: Share | None = Field(
        description="Share of the chosen directions that is left; null, like lambda and cosine, if they do not come from an estimate."
    )
    cosine: Mapping[str, Number] | None = Field(description="Cosine with each keep set's direction, before scoping.")
    along_keep: May[Positive] = Field(
        default=None,
        description="Average share of what the chosen edit removes that lies in the span of the keep sets' directions: 0 none, 1 all.",
    )


class TuningExamples(Record):
    """How many examples of each role the tuner learned from; a role without prompts is absent."""

    target: May[Count] = None
    keep: May[Count] = None
    baseline: May[Count] = None
    harmless: May[Count] = None


class TuningStep(Record):
    """Parts of the loss on train prompts."""

    step: Count
    weight: Number
    target: Number | None = None
    keep: Number | None = None
    baseline: Number | None = None
    harmless: Number | None = None
    edits: Number | None = None


class RepliesOf(Record):
    """Short replies to val prompts of one role: withheld and broken ones of the unedited and of this edited model."""

    asked: Count
    withheld_before: Count
    withheld: Count
    broken_before: Count
    broken: Count


class FrontPoint(Record):
    """An edit measured on val prompts, KL in nats; edits: the sum of strengths."""

    name: May[str] = None
    step: Count
    weight: Number | None
    target_left: Positive | None
    keep_kl: Number | None
    kl: Number | None
    kl_sequence: Number | None
    edits: Number | None
    on_front: bool
    chosen: bool
    replies: Mapping[str, RepliesOf] | None = Field(
        default=None,
        description="Short replies to val prompts by role, to target prompts that the unedited model withholds and to all others. "
        "Null: this edit wrote no replies.",
    )


class TuningRecord(Record):
    """How strengths and directions were tuned."""

    model_config = ConfigDict(extra="allow")

    kind: TuningKind
    seed: int
    steps: int | None
    prefer: Literal["balanced", "quality", "removal"]
    max_kl: Number | None
    given_up: May[Several[str]] = Field(
        default=None, description="The edit that would have been chosen without the bound on KL; empty if it is the same."
    )
    history: Several[TuningStep]
    front: Several[FrontPoint]
    examples: TuningExamples
    strength: Several[Pair] = Field(description="[attention, mlp] of each block.")
    cosine_to_start: Several[PairOrNone] | None = Field(description="[attention, mlp] of each block.")


class Selection(Record):
    """How the edit was chosen, on val prompts: selection.json."""

    chosen: CandidateScores
    filters: Filters
    relaxed: Several[str] = Field(description="Filters that were relaxed, in words.")
    candidates: Several[CandidateScores]
    name: May[str] = Field(default=None, description="Name of the chosen edit, tuned or not.")
    strength: Number
    tuning: TuningRecord | None = None
    yardstick: YardstickRecord
    scoped: Scoped | None = None

    @property
    def called(self) -> str:
        """The name of the chosen edit; older runs record only the candidate's."""
        return self.name or self.chosen.name
