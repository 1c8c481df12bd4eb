"""Modules in memory, found by the names of a layout; how transformers loads them; devices and types to compute in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    FineGrainedFP8Config,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.quantization_config import Mxfp4Config

from abliterate.errors import InputError, first_line
from abliterate.model.folder import ModelFolder, whole_config
from abliterate.model.layouts import in_memory
from abliterate.model.meta import class_for

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class InMemory:
    """A model in memory, its modules found by the names of its layout."""

    folder: ModelFolder
    module: PreTrainedModel

    @property
    def device(self) -> torch.device:
        return self.module.device

    @cached_property
    def parts(self) -> dict[str, nn.Module]:
        """Every module by its name in memory."""
        return dict(self.module.named_modules())

    def part(self, name: str) -> nn.Module:
        """A module of the text model by the name that the layout gives it. Raises InputError where the model has none."""
        found = self.parts.get(in_memory(name, self.parts))
        if found is None:
            raise InputError(f"{self.folder.path}: the model has no module {name!r}, which its layout {self.folder.layout.name!r} names")
        return found

    def block(self, layer: int) -> nn.Module:
        """Decoder block ``layer``."""
        return self.part(self.folder.layout.block_module.format(layer))


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA, else MPS, else CPU. Raises InputError for a device that isn't there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))  # one process a GPU, under torchrun
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} can't be used here ({first_line(error)})") from None
    return device


def pick_dtype(name: DTypeName, device: torch.device) -> torch.dtype:
    """``auto`` computes in bf16 on an accelerator and in float32 on a CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def end_ids(folder: ModelFolder, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a reply, by the folder's advice on generation, else its config, and its tokenizer."""
    try:
        advice = GenerationConfig.from_pretrained(folder.path, local_files_only=True).eos_token_id
    except OSError:
        advice = getattr(folder.config, "eos_token_id", None)
    ends = {advice} if isinstance(advice, int) else set(advice or ())
    return frozenset(ends | {int(tokenizer.eos_token_id)} - {None})


def from_pretrained(folder: ModelFolder, dtype: torch.dtype, gpus: Sequence[int] = ()) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what transformers says of keys that were missing. Raises InputError where it can't be loaded."""
    kind = class_for(whole_config(folder))
    packed: dict[str, Any] = {"device_map": "auto", "max_memory": dict(enumerate(gpus))} if gpus else {}
    if folder.quantisation is not None:  # computed in dtype: the formats' own kernels need particular hardware
        packed |= {"quantization_config": {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}[folder.quantisation](dequantize=True)}
    try:
        loaded: Any = kind.from_pretrained(
            folder.path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=folder.trust_remote_code,
            output_loading_info=True,
            **packed,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder.path}: transformers can't load it ({first_line(error)})") from None
    module, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    # What was not FP8 keeps its stored type, and before transformers 5.23 what was MXFP4: the rest can't be computed with it.
    if folder.quantisation is not None:
        for parameter in module.parameters():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.to(dtype)
    return module, info
