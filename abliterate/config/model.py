"""Where a model comes from, and how it is held and computed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from abliterate.config.base import Config, with_weights


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
        return with_weights(given, "--model")


class HeldConfig(FolderConfig):
    """Where and in what a model is held, and whether it thinks."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type to compute in; auto: bfloat16 on a GPU, float32 on a CPU."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
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


class ComputeConfig(HeldConfig):
    """How a model is computed."""

    batch_size: int | None = Field(
        None, ge=1, description="Prompts computed at once; default: as many as are fast on the device and fit in its memory."
    )


class ModelConfig(ComputeConfig, SourceConfig):
    """The model and how it is computed."""
