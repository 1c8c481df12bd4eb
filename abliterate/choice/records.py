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

    name: str = Field(description="Name of the edit.")
    kind: str = Field(description="single, interpolated, per-layer.")
    estimator: str = Field(description="The estimator of its direction, or first-order effect.")
    position: int = Field(description="Position of its direction; -1 is the last token of the prompt.")
    layer: int = Field(description="The block whose direction it is, or the first block of a per-layer edit.")
    bypass: Number | None = Field(description="Log-probability of the withholding openings on target prompts, after ablation.")
    stays: Number | None = Field(description="Share of their likelihood that is left after ablation.")
    induce: Number | None = Field(
        description="Rise of their likelihood on baseline prompts after addition, as a share of that on target prompts."
    )
    kl: Number | None = Field(description="Mean KL(base‖ablated) of the first token on harmless prompts.")
    spill: Number | None = Field(description="The same rise after ablation; null, like induce, without baseline prompts.")


class Filters(Record):
    """The filters for single candidates."""

    model_config = ConfigDict(extra="allow")

    max_kl: Number = Field(description="Largest KL that was asked for.")
    max_kl_in_force: Number = Field(description="Largest KL that was let pass, after relaxing.")
    max_layer: Number = Field(description="Highest block, as a share of the depth.")
    max_stays: May[Number] = Field(default=None, description="Largest stays.")
    max_spill: May[Number] = Field(default=None, description="Largest spill.")
    induce: May[str] = Field(default=None, description="What induce must be, in words.")


class YardstickRecord(Record):
    """The target prompts of val, and how many of them the unedited model withholds."""

    model_config = ConfigDict(extra="allow")

    asked: Count = Field(description="Number of prompts.")
    withheld: Count = Field(description="How many the unedited model withholds.")
    base_logprob: Number | None = Field(description="Mean log-probability of the unedited model's own openings.")


class Scoped(Record):
    """How the direction was separated from the keep sets' directions."""

    sets: Several[str] = Field(description="The keep sets.")
    ridge: Number | None = Field(validation_alias="lambda", serialization_alias="lambda", description="Ridge penalty of the separation.")
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

    target: May[Count] = Field(default=None, description="Target prompts.")
    keep: May[Count] = Field(default=None, description="Keep prompts.")
    baseline: May[Count] = Field(default=None, description="Baseline prompts.")
    harmless: May[Count] = Field(default=None, description="Harmless prompts.")


class TuningStep(Record):
    """Parts of the loss on train prompts."""

    step: Count = Field(description="Number of the step.")
    weight: Number = Field(description="Weight of drift in the loss.")
    target: Number | None = Field(default=None, description="Suppression of the withholding openings on target prompts, nats.")
    keep: Number | None = Field(default=None, description="Drift on keep prompts, nats.")
    baseline: Number | None = Field(default=None, description="Drift on baseline prompts, nats.")
    harmless: Number | None = Field(default=None, description="Drift on harmless prompts, nats.")
    edits: Number | None = Field(default=None, description="Sum of the strengths after the step.")


class RepliesOf(Record):
    """Short replies to val prompts of one role: withheld and broken ones of the unedited and of this edited model."""

    asked: Count = Field(description="Number of replies.")
    withheld_before: Count = Field(description="Withheld by the unedited model.")
    withheld: Count = Field(description="Withheld by this edited model.")
    broken_before: Count = Field(description="Broken ones of the unedited model.")
    broken: Count = Field(description="Broken ones of this edited model.")


class FrontPoint(Record):
    """An edit measured on val prompts, KL in nats."""

    name: May[str] = Field(default=None, description="Name of the edit.")
    step: Count = Field(description="Step of the tuner or trial of the search at which it was measured.")
    weight: Number | None = Field(description="Weight of drift under which it was tuned; null if it was not.")
    target_left: Positive | None = Field(
        description="How likely the target is still withheld, as a share of the unedited model; 1: nothing was removed."
    )
    keep_kl: Number | None = Field(description="KL along the unedited model's own replies to keep and baseline prompts, per token.")
    kl: Number | None = Field(description="KL of the first token on harmless prompts.")
    kl_sequence: Number | None = Field(description="KL along the unedited model's own replies to harmless prompts, per token.")
    edits: Number | None = Field(description="Sum of the strengths.")
    on_front: bool = Field(description="Whether no other edit is better in target_left, keep_kl and kl.")
    chosen: bool = Field(description="Whether it was chosen.")
    replies: Mapping[str, RepliesOf] | None = Field(
        default=None,
        description="Short replies to val prompts by role, to target prompts that the unedited model withholds and to all others. "
        "Null: this edit wrote no replies.",
    )


class TuningRecord(Record):
    """How strengths and directions were tuned."""

    model_config = ConfigDict(extra="allow")

    kind: TuningKind = Field(description="How: by gradients, by a search of forward passes, or not.")
    seed: int = Field(description="Seed of the tuner.")
    steps: int | None = Field(description="Number of steps; null without.")
    prefer: Literal["balanced", "quality", "removal"] = Field(description="How drift is weighed against what is removed.")
    max_kl: Number | None = Field(description="Bound on the first-token KL.")
    given_up: May[Several[str]] = Field(
        default=None, description="The edit that would have been chosen without the bound on KL; empty if it is the same."
    )
    history: Several[TuningStep] = Field(description="Each step.")
    front: Several[FrontPoint] = Field(description="Every edit that was measured.")
    examples: TuningExamples
    strength: Several[Pair] = Field(description="[attention, mlp] of each block.")
    cosine_to_start: Several[PairOrNone] | None = Field(description="[attention, mlp] of each block.")


class Selection(Record):
    """How the edit was chosen, on val prompts: selection.json."""

    chosen: CandidateScores = Field(description="The candidate that was chosen, or that the chosen edit began with.")
    filters: Filters
    relaxed: Several[str] = Field(description="Filters that were relaxed, in words.")
    candidates: Several[CandidateScores] = Field(description="Every candidate.")
    name: May[str] = Field(default=None, description="Name of the chosen edit, tuned or not.")
    strength: Number = Field(description="Largest strength of the chosen edit.")
    tuning: TuningRecord | None = None
    yardstick: YardstickRecord
    scoped: Scoped | None = None

    @property
    def called(self) -> str:
        """The name of the chosen edit; older runs record only the candidate's."""
        return self.name or self.chosen.name
