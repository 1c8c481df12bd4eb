"""What each stage can be told: a field is at once the command's flag, the TOML key and the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

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


class ModelConfig(SourceConfig):
    """The model and how it is computed."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type to compute in; auto: bfloat16 on a GPU, float32 on a CPU."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    batch_size: int = Field(32, ge=1, description="Prompts computed at once.")


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


class SelectConfig(Config):
    """The choice of the edit."""

    candidates: int = Field(4, ge=2, le=200, description="How many single-layer directions are tried (beside the per-layer ones).")
    max_kl: float = Field(
        0.1,
        gt=0,
        description="First-token KL bound on harmless prompts, nats; relaxed by doubling where nothing passes.",
    )
    max_layer: float = Field(0.8, gt=0, le=1, description="Single directions come from below this share of the depth.")


class RunConfig(EvaluateConfig, EditConfig, SelectConfig, CollectConfig):
    """The whole pipeline."""

    keep: Sets = Field((), description="What must stay: prompt sets whose refusals are measured before and after.")
    harmless: str = Field("harmless", description="Ordinary prompts: drift is measured on them, their mean is projected out.")
    margin: float = Field(0.05, gt=0, lt=1, description="Non-inferiority margin of the keep sets' refusals.")


class AuditConfig(EvaluateConfig, ModelConfig):
    """Evaluation and report of one model, nothing edited."""

    prompts: Sets = Field(min_length=1, description="Prompt sets to ask; every prompt of their test split.")
    limit: int | None = Field(None, ge=1, description="At most this many prompts of each set.")
    split: Literal["train", "val", "test", "all"] = Field("test", description="Which split is asked.")


class EditCommandConfig(EditConfig, SourceConfig):
    """Edit alone."""

    direction: str | None = Field(None, description="Direction file (safetensors, [d_model] or [layer, d_model]).")
    plan: str | None = Field(None, description="Plan file (safetensors: directions and strengths a layer and component).")
    as_adapter: bool = Field(False, description="Write the edit as a LoRA adapter (PEFT) instead of a checkpoint.")


class VerifyConfig(FolderConfig):
    """The proof of an edited checkpoint, derived again."""

    base: str | None = Field(None, description="The base model: every other byte must be its own. A folder, a Hub id, or a short name.")
    revision: str | None = Field(None, description="The base's branch, tag or commit on the Hub.")


class PlanConfig(SourceConfig):
    """What a run would read, write and cost."""

    prompts_per_set: int = Field(120, ge=1, description="Prompts of each set in the estimate.")
    max_new_tokens: int = Field(64, ge=1, description="Length of the generated responses, in tokens.")
