"""The settings that say where a model comes from and how it is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from abliterate.config.base import Config, with_weights
from abliterate.config.setting import Panel, setting


class FolderConfig(Config):
    """How to read a model's folder."""

    layout: str | None = setting(
        None,
        description="TOML file that describes an unknown architecture: it names the tensors that write to the residual stream.",
        panel=Panel.MODEL,
        rank=20,
        names="file",
        risk="it reads a file on this machine",
    )
    trust_remote_code: bool = setting(
        False,
        description="Run Python code that comes with the model. Reports record this setting.",
        panel=Panel.MODEL,
        rank=20,
        risk="it runs code that comes with the model",
    )

    @property
    def layout_file(self) -> Path | None:
        return Path(self.layout) if self.layout is not None else None


class SourceConfig(FolderConfig):
    """Where the model comes from."""

    model: str = setting(
        min_length=1,
        description="The model: a folder, a Hub id, or a short name (deepseek-r1-distill-qwen-32b, smollm2-refuser, ...).",
        panel=Panel.MAIN,
        rank=1,
        names="model",
        from_record=True,
    )
    revision: str | None = setting(None, description="Branch, tag or commit on the Hub.", panel=Panel.MODEL, rank=1, from_record=True)

    @field_validator("model")
    @classmethod
    def _model_is_one(cls, given: str) -> str:
        return with_weights(given, "--model")


class HeldConfig(FolderConfig):
    """The device, type and memory that a model is computed with, and whether it reasons first."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", description="Compute type. auto: bfloat16 on a GPU, float32 on a CPU.", panel=Panel.MODEL, rank=2, from_record=True
    )
    device: str = setting(
        "auto", description="Device to compute on: auto, cpu, cuda, cuda:1, mps.", panel=Panel.MODEL, rank=2, from_record=True
    )
    max_memory: str | None = setting(
        None,
        min_length=1,
        description="Memory limit (6GiB, or cpu=32GiB,cuda:0=20GiB). A model that needs more is read block by block. "
        "Default: nine tenths of the free memory.",
        panel=Panel.MODEL,
        rank=2,
        from_record=True,
    )
    thinking: str = setting(
        "on",
        description="For a model that reasons before it answers. on: let it reason as its chat template says; off: skip the reasoning (the "
        "reply starts after an empty <think> block); budget:N: close the reasoning after N tokens (--max-new-tokens then counts only the "
        "answer).",
        panel=Panel.MODEL,
        from_record=True,
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
        """The maximum number of reasoning tokens, if there is one."""
        return int(self.thinking.removeprefix("budget:")) if self.thinking.startswith("budget:") else None


class ComputeConfig(HeldConfig):
    """How to compute a model."""

    batch_size: int | None = setting(
        None,
        ge=1,
        description="Prompts per batch. Default: as many as are fast on the device and fit in its memory.",
        panel=Panel.MODEL,
        rank=3,
        from_record=True,
    )


class ModelConfig(ComputeConfig, SourceConfig):
    """The model and how to compute it."""
