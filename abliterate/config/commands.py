"""What each command can be told: the settings of its stages, and what fits together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from abliterate.config.base import Config, Sets, is_url, server_url, with_weights
from abliterate.config.model import ComputeConfig, FolderConfig, HeldConfig, ModelConfig, SourceConfig
from abliterate.config.stages import (
    ESTIMATORS,
    CollectConfig,
    EditConfig,
    EngineConfig,
    EvaluateConfig,
    SelectConfig,
    Transcripts,
    known_estimators,
)
from abliterate.errors import InputError

Which = Literal["base", "derived"]
_NOT_FROM_A_RECORD = "never taken from the record."
_REFERENCE = "A model whose behaviour without the censorship is known: how much of it comes back is measured."


class RunConfig(EngineConfig, EvaluateConfig, EditConfig, SelectConfig, CollectConfig):
    """The whole pipeline."""

    margin: float = Field(0.05, gt=0, lt=1, description="Non-inferiority margin of the keep sets' refusals.")
    edited_engine: str | None = Field(None, description="URL of the server of the edited checkpoint, where it is another one.")
    reference: str | None = Field(None, min_length=1, description=_REFERENCE)

    @field_validator("reference")
    @classmethod
    def _reference_is_here(cls, given: str | None) -> str | None:
        return None if given is None else with_weights(given, "--reference")

    @field_validator("edited_engine")
    @classmethod
    def _edited_engine_is_a_server(cls, given: str | None) -> str | None:
        return None if given is None else server_url(given, "--edited-engine")

    @model_validator(mode="after")
    def _both_models_are_asked_alike(self) -> RunConfig:
        if self.edited_engine is not None and not is_url(self.engine):
            raise InputError(f"--edited-engine is a server, but --engine is {self.engine}: both models must be asked by servers")
        return self


class AuditConfig(EngineConfig, EvaluateConfig, ModelConfig):
    """Evaluation and report of one model, nothing edited."""

    model: str = Field(min_length=1, description="A folder, a Hub id, a short name, or an OpenAI-compatible server's URL.")
    prompts: Sets = Field(min_length=1, description="Prompt sets to ask; every prompt of their test split.")
    limit: int | None = Field(None, ge=1, description="At most this many prompts of each set, 1 or more.")
    split: Literal["train", "val", "test", "all"] = Field("test", description="Which split is asked.")

    @field_validator("model")
    @classmethod
    def _model_is_one(cls, given: str) -> str:
        return server_url(given, "--model") if is_url(given) else given

    @model_validator(mode="after")
    def _one_server_is_asked(self) -> AuditConfig:
        if is_url(self.model) and self.engine not in ("transformers", self.model):
            raise InputError("--model is a server's URL, so it is also what writes the replies: leave --engine out")
        return self


class CompareConfig(EngineConfig, EvaluateConfig, ComputeConfig):
    """Two models, before and after: what both reply, and what differs between their weights."""

    base: str = Field(min_length=1, description="The model before: a folder, a Hub id, a short name, or an OpenAI-compatible server's URL.")
    derived: str = Field(min_length=1, description="The model after, given as the base is.")
    base_revision: str | None = Field(None, description="The base's branch, tag or commit on the Hub.")
    derived_revision: str | None = Field(None, description="The derived model's branch, tag or commit on the Hub.")
    derived_engine_model: str | None = Field(None, min_length=1, description="The derived model's name on the server.")
    prompts: Sets = Field((), description="Prompt sets to ask; every prompt of their test split.")
    keep: Sets = Field((), description="Prompt sets to ask whose refusals should not have become fewer.")
    limit: int | None = Field(None, ge=1, description="At most this many prompts of each set, 1 or more.")
    split: Literal["train", "val", "test", "all"] = Field("test", description="Which split is asked.")
    margin: float = Field(0.05, gt=0, lt=1, description="Non-inferiority margin of the keep sets' refusals.")
    weights_only: bool = Field(False, description="Compare the weights alone and ask nothing.")
    reference: str | None = Field(None, min_length=1, description=_REFERENCE)

    @field_validator("reference")
    @classmethod
    def _reference_is_here(cls, given: str | None) -> str | None:
        return None if given is None else with_weights(given, "--reference")

    @field_validator("base")
    @classmethod
    def _base_is_one(cls, given: str) -> str:
        return server_url(given, "--base") if is_url(given) else given

    @field_validator("derived")
    @classmethod
    def _derived_is_one(cls, given: str) -> str:
        return server_url(given, "--derived") if is_url(given) else given

    @model_validator(mode="after")
    def _there_is_something_to_do(self) -> CompareConfig:
        if self.weights_only and (is_url(self.base) or is_url(self.derived)):
            raise InputError("--weights-only compares weights, but a server doesn't show them: give two folders, Hub ids or short names")
        if self.reference is not None and (self.weights_only or is_url(self.base) or is_url(self.derived)):
            raise InputError("--reference compares what models predict: give two folders, Hub ids or short names, without --weights-only")
        if self.weights_only:
            return self
        if not self.prompts and not self.keep:
            raise InputError("--prompts is needed (or --keep); --weights-only asks nothing")
        names = {self.engine_model, self.derived_engine_model}
        one_server = self.base == self.derived if is_url(self.base) else is_url(self.engine) and not is_url(self.derived)
        if one_server and (len(names) < 2 or None in names):
            raise InputError("both models are asked of one server: say which is which with --engine-model and --derived-engine-model")
        return self

    def side(self, which: Which) -> AuditConfig:
        """How one of the two models is asked: as an audit of it. Raises InputError for settings that don't go together."""
        of_base = which == "base"
        model = self.base if of_base else self.derived
        shared = {name: getattr(self, name) for name in AuditConfig.model_fields if name in CompareConfig.model_fields}
        own = {
            "model": model,
            "revision": self.base_revision if of_base else self.derived_revision,
            "prompts": self.prompts + self.keep,
            "engine": "transformers" if is_url(model) else self.engine,
            "engine_model": self.engine_model if of_base else self.derived_engine_model,
        }
        return AuditConfig(**{**shared, **own})


class EditCommandConfig(EditConfig, SourceConfig):
    """Edit alone."""

    direction: str | None = Field(None, description="Direction file (safetensors, [d_model] or [layer, d_model]).")
    plan: str | None = Field(None, description="Plan file (safetensors: directions and strengths a layer and component).")
    as_adapter: bool = Field(False, description="Write the edit as a LoRA adapter (PEFT) instead of a checkpoint.")

    @model_validator(mode="after")
    def _one_file_says_what_is_removed(self) -> EditCommandConfig:
        if (self.direction is None) == (self.plan is None):
            raise InputError("give either --direction FILE or --plan FILE")
        return self


class VerifyConfig(FolderConfig):
    """The proof of an edited checkpoint, derived again."""

    base: str | None = Field(None, description="The base model: every other byte must be its own. A folder, a Hub id, or a short name.")
    revision: str | None = Field(None, description="The base's branch, tag or commit on the Hub.")


class PushConfig(FolderConfig):
    """What is published, and how. The token is huggingface_hub's own (HF_TOKEN, hf auth login)."""

    public: bool = Field(False, description="Anybody may see it; without this the repository is private.")
    dry_run: bool = Field(False, description="Check, show what would be sent, and send nothing.")
    even_so: str | None = Field(
        None, min_length=1, description="Publish although verify or a keep test did not hold, for this reason; it lands in the card."
    )
    license: str | None = Field(
        None,
        min_length=1,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$",
        description="The licence's id on the Hub, where the base's card states none.",
    )
    base: str | None = Field(None, description="The base model, for verify; default: the run's own, where it is still there.")
    revision: str | None = Field(None, description="The base's branch, tag or commit on the Hub.")

    @field_validator("even_so")
    @classmethod
    def _the_reason_says_something(cls, given: str | None) -> str | None:
        if given is not None and not given.strip():
            raise PydanticCustomError("reason", "it must say why")
        return given


class JudgeConfig(Config):
    """Who judges stored replies."""

    judge: str = Field(
        "rules",
        description="Who tells the outcomes: rules, classifier:ID[@LABELS] (a folder or Hub id; LABEL=outcome,... or a JSON file), or "
        "chat:URL[#MODEL] (an OpenAI-compatible server).",
    )
    device: str = Field("auto", description="Of a classifier: auto, cpu, cuda, cuda:1, mps.")
    concurrency: int = Field(16, ge=1, le=4096, description="Requests under way at once on a server.")
    request_timeout: int = Field(600, ge=1, description="Seconds that a server has for one reply, before it is asked again.")
    patience: int = Field(600, ge=0, description="Seconds that a server may stay away before the command stops, to go on later.")


class ReportConfig(JudgeConfig):
    """A report made again."""

    transcripts: Transcripts | None = Field(
        None, description="How much of each reply report.html shows: full, excerpt, none; default: as the run was told."
    )


class ChatConfig(HeldConfig, SourceConfig):
    """A conversation with one model, or with two beside each other."""

    beside: str | None = Field(None, min_length=1, description="A second model that is told the same (the edited checkpoint).")
    beside_revision: str | None = Field(None, description="The second model's branch, tag or commit on the Hub.")
    temperature: float = Field(0.0, ge=0, le=10, description="0 takes the likeliest token each time; above it tokens are drawn.")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Of what is drawn; both models have the same.")
    max_new_tokens: int = Field(512, ge=1, description="Length of a reply, in tokens.")

    @field_validator("beside")
    @classmethod
    def _beside_is_one(cls, given: str | None) -> str | None:
        if given is not None and is_url(given):
            raise InputError("--beside is a server's URL, but a model is spoken with here: give a folder, a Hub id or a short name")
        return given

    @model_validator(mode="after")
    def _thoughts_are_not_cut(self) -> ChatConfig:
        if self.thought_budget is not None:
            raise InputError(f"--thinking {self.thinking}: a conversation knows on and off; --max-new-tokens bounds the whole reply")
        return self


class ReproduceConfig(Config):
    """A run again, with the settings that it had; where the models lie may be told anew, and what a record may not say is told here."""

    model: str | None = Field(None, min_length=1, description="Where the model of a run or an audit lies now.")
    base: str | None = Field(None, min_length=1, description="Where the base of a comparison lies now.")
    derived: str | None = Field(None, min_length=1, description="Where the derived model of a comparison lies now.")
    reference: str | None = Field(None, min_length=1, description="Where the reference lies now, if there was one.")
    engine: str | None = Field(None, description=f"What writes the replies (transformers, vllm, a server's URL); {_NOT_FROM_A_RECORD}")
    edited_engine: str | None = Field(None, description=f"URL of the server of the edited checkpoint; {_NOT_FROM_A_RECORD}")
    layout: str | None = Field(None, description=f"TOML file of an unknown architecture's layout; {_NOT_FROM_A_RECORD}")
    study: str | None = Field(None, description=f"Where the search keeps its study; {_NOT_FROM_A_RECORD}")
    lm_eval: Sets = Field((), description=f"Tasks of lm-evaluation-harness; {_NOT_FROM_A_RECORD}")
    trust_remote_code: bool = Field(False, description=f"Run Python code that comes with the models; {_NOT_FROM_A_RECORD}")


class PlanConfig(RunConfig):
    """A run to come: what it would read, write, hold, compute and take."""


class DirectionsConfig(Config):
    """The directions of collected activations: how good they are, and one of them as a file."""

    estimators: Sets = Field((), description=f"Which estimators; default: all that the file has the prompts for ({', '.join(ESTIMATORS)}).")
    estimator: str | None = Field(None, description="Whose direction --out is, as the table names it ('projected', 'projected, scoped').")
    layer: float | None = Field(
        None, ge=0, description="The block whose direction --out is; 11.5 lies between two; default: a direction for each block."
    )
    position: int | None = Field(None, le=-1, description="The token it is taken from (-1: the last); default: where it separates best.")

    @field_validator("estimators")
    @classmethod
    def _estimators_are_known(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return known_estimators(given)
