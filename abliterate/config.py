"""What each stage can be told: a field is at once the command's flag, the TOML key and the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from abliterate.errors import InputError

Sets = Annotated[tuple[str, ...], Field()]


class Config(BaseModel):
    """Frozen and validated; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class FolderConfig(Config):
    """How a model's folder is read."""

    layout: str | None = Field(None, description="TOML file that says which tensors of an unknown architecture write to the stream.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model. Recorded in the report.")

    @property
    def layout_file(self) -> Path | None:
        return Path(self.layout) if self.layout is not None else None


class SourceConfig(FolderConfig):
    """Where the model comes from."""

    model: str = Field(
        min_length=1, description="A folder, a Hub id, or a short name (deepseek-r1-distill-qwen-32b, smollm2-refuser, ...)."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")

    @field_validator("model")
    @classmethod
    def _model_is_one(cls, given: str) -> str:
        if is_url(given):
            raise InputError("--model is a server's URL, but the weights themselves are needed: give a folder, a Hub id or a short name")
        return given


class ComputeConfig(FolderConfig):
    """How a model is computed."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type to compute in; auto: bfloat16 on a GPU, float32 on a CPU."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    batch_size: int | None = Field(
        None, ge=1, description="Prompts computed at once; default: as many as are fast on the device and fit in its memory."
    )
    max_memory: str | None = Field(
        None,
        min_length=1,
        description="Memory to keep to (6GiB, or cpu=32GiB,cuda:0=20GiB); a model that needs more is read block by block. "
        "Default: nine tenths of what is free.",
    )
    thinking: str = Field(
        "on",
        description="Of a model that thinks before it answers: on (as its template has it), off (it begins behind an empty thought), "
        "budget:N (a thought is closed after N tokens; --max-new-tokens then counts the answer alone).",
    )

    @field_validator("thinking")
    @classmethod
    def _thinking_is_known(cls, given: str) -> str:
        number = given.removeprefix("budget:")
        if given in ("on", "off") or (number != given and number.isascii() and number.isdigit() and 0 < int(number) < 10**6):
            return given
        raise PydanticCustomError("thinking", "it must be on, off, or budget:N (budget:256)")

    @property
    def thought_budget(self) -> int | None:
        """Tokens that a thought may have, where that is bounded."""
        return int(self.thinking.removeprefix("budget:")) if self.thinking.startswith("budget:") else None


class ModelConfig(ComputeConfig, SourceConfig):
    """The model and how it is computed."""


class ContrastConfig(Config):
    """What is contrasted with what."""

    target: Sets = Field(("harmful",), min_length=1, description="What should go: prompt sets (names, files, hf:DATASET:SPLIT:COLUMN).")
    baseline: Sets = Field((), description="What the target is contrasted with; default: the bundled target's twin set, else harmless.")
    limit: int | None = Field(None, ge=4, description="At most this many prompts of each set in train and in test, a third of it in val.")


class CollectConfig(ContrastConfig, ModelConfig):
    """Activation statistics alone."""

    positions: int | None = Field(
        None,
        ge=1,
        le=64,
        description="How many last tokens of the prompt; default: all that the chat template appends.",
    )


class EditConfig(Config):
    """The edit."""

    strength: float = Field(1.0, ge=0, le=1, description="Share of the component along the direction that is removed.")
    embedding: Literal["auto", "edit", "skip", "untie"] = Field(
        "auto",
        description="Token embedding; auto: edited when untied and one direction serves all blocks; "
        "untie: a tied unembedding keeps its weights.",
    )
    norms: Literal["free", "keep"] = Field("free", description="keep: each column of an edited matrix gets its old length back.")


class EvaluateConfig(Config):
    """The final test."""

    max_new_tokens: int = Field(64, ge=1, description="Length of the generated responses, in tokens.")
    lm_eval: Sets = Field((), description="Tasks of lm-evaluation-harness (mmlu, gsm8k, ...) to score the models in.")


class EngineConfig(Config):
    """What decodes the replies of the final test."""

    engine: str = Field(
        "transformers",
        description="What writes the replies: transformers, vllm, or an OpenAI-compatible server's URL (http://host:8000/v1).",
    )
    engine_model: str | None = Field(None, min_length=1, description="The model's name on the server; default: the one that is the model.")
    concurrency: int = Field(16, ge=1, le=4096, description="Requests under way at once on a server.")
    request_timeout: int = Field(600, ge=1, description="Seconds that a server has for one reply, before it is asked again.")
    patience: int = Field(600, ge=0, description="Seconds that a server may stay away before the run stops, to go on later.")
    tensor_parallel: int = Field(1, ge=1, description="GPUs that vllm splits each layer over.")
    settle: bool = Field(False, description="Cut the replies of clear refusals: faster, and now and then another outcome.")
    pipeline_parallel: int = Field(1, ge=1, description="Parts that vllm splits the layers into; of several nodes, their number.")

    @field_validator("engine")
    @classmethod
    def _engine_is_known(cls, given: str) -> str:
        if is_url(given) or "@" in given:  # a password without its scheme is not repeated either
            return server_url(given, "--engine")
        if given not in ("transformers", "vllm"):
            raise PydanticCustomError("engine", "it must be transformers, vllm, or a server's URL (http://host:8000/v1)")
        return given

    @model_validator(mode="after")
    def _only_replies_that_are_written_here_are_cut(self) -> EngineConfig:
        if self.settle and (self.engine != "transformers" or is_url(getattr(self, "model", ""))):
            raise InputError("--settle cuts replies while they are written here, but another engine writes them: leave it out")
        return self


class SelectConfig(Config):
    """The choice of the edit."""

    candidates: int = Field(4, ge=2, le=200, description="How many single-layer directions are tried (beside the per-layer ones).")
    max_kl: float = Field(
        0.1,
        gt=0,
        description="First-token KL bound on harmless prompts, nats; relaxed by doubling where nothing passes.",
    )
    max_layer: float = Field(0.8, gt=0, le=1, description="Single directions come from below this share of the depth.")


class RunConfig(EngineConfig, EvaluateConfig, EditConfig, SelectConfig, CollectConfig):
    """The whole pipeline."""

    keep: Sets = Field((), description="What must stay: prompt sets whose refusals are measured before and after.")
    harmless: str = Field("harmless", description="Ordinary prompts: drift is measured on them, their mean is projected out.")
    margin: float = Field(0.05, gt=0, lt=1, description="Non-inferiority margin of the keep sets' refusals.")
    edited_engine: str | None = Field(None, description="URL of the server of the edited checkpoint, where it is another one.")

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
    limit: int | None = Field(None, ge=1, description="At most this many prompts of each set.")
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
    limit: int | None = Field(None, ge=1, description="At most this many prompts of each set.")
    split: Literal["train", "val", "test", "all"] = Field("test", description="Which split is asked.")
    margin: float = Field(0.05, gt=0, lt=1, description="Non-inferiority margin of the keep sets' refusals.")
    weights_only: bool = Field(False, description="Compare the weights alone and ask nothing.")

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
        if self.weights_only:
            return self
        if not self.prompts and not self.keep:
            raise InputError("--prompts is needed (or --keep); --weights-only asks nothing")
        names = {self.engine_model, self.derived_engine_model}
        one_server = self.base == self.derived if is_url(self.base) else is_url(self.engine) and not is_url(self.derived)
        if one_server and (len(names) < 2 or None in names):
            raise InputError("both models are asked of one server: say which is which with --engine-model and --derived-engine-model")
        return self


class EditCommandConfig(EditConfig, SourceConfig):
    """Edit alone."""

    direction: str | None = Field(None, description="Direction file (safetensors, [d_model] or [layer, d_model]).")
    plan: str | None = Field(None, description="Plan file (safetensors: directions and strengths a layer and component).")
    as_adapter: bool = Field(False, description="Write the edit as a LoRA adapter (PEFT) instead of a checkpoint.")


class VerifyConfig(FolderConfig):
    """The proof of an edited checkpoint, derived again."""

    base: str | None = Field(None, description="The base model: every other byte must be its own. A folder, a Hub id, or a short name.")
    revision: str | None = Field(None, description="The base's branch, tag or commit on the Hub.")


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


class PlanConfig(RunConfig):
    """A run to come: what it would read, write, hold, compute and take."""


def is_url(given: str) -> bool:
    """Whether what is given is meant as a server's address."""
    return "://" in given


def server_url(given: str, flag: str) -> str:
    """A server's base URL without a slash at its end. Raises InputError, in which nothing secret is repeated."""
    try:
        parts = urlsplit(given.strip())
        whole = parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that doesn't close
        whole = False
    if not whole:
        raise InputError(f"{flag}: not the URL of a server; it looks like http://host:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InputError(f"{flag}: give the server's bare base URL; a key belongs in the environment (ABLITERATE_API_KEY)")
    return f"{parts.scheme.lower()}://{parts.netloc}{parts.path.rstrip('/')}"
