"""Load a model with transformers, find its modules by the names of a layout, and pick the device and dtype to compute in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from abliterate.errors import InputError, first_line
from abliterate.model.failure import refused
from abliterate.model.folder import ModelFolder, whole_config
from abliterate.model.meta import class_for
from abliterate.model.tensor_names import in_memory
from abliterate.terminal.progress import say_once

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
# Implementations of attention and experts that run on every device, by the config key that selects one.
_ANYWHERE = {"attn_implementation": ("eager", "sdpa"), "experts_implementation": ("eager", "grouped_mm", "batched_mm")}


@dataclass(frozen=True)
class InMemory:
    """A model in memory, whose modules are found by the names of its layout."""

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
        """A module of the text model by the name that the layout gives it. Raises InputError if the model has none."""
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
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))  # one process per GPU under torchrun
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


def from_pretrained(folder: ModelFolder, dtype: torch.dtype, gpus: Sequence[int] = ()) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and transformers' report on missing keys. Raises InputError if it can't be loaded."""
    trusted = folder.trust_remote_code
    kind = class_for(whole_config(folder))
    packed: dict[str, Any] = {"device_map": "auto", "max_memory": dict(enumerate(gpus))} if gpus else {}
    if others := implementations(folder):  # the config file's own choice would take precedence
        packed |= {**others, "config": AutoConfig.from_pretrained(folder.path, trust_remote_code=trusted, local_files_only=True)}
    if (dequantising := folder.stored.loading()) is not None:  # to dtype: the formats' own kernels need particular hardware
        packed |= {"quantization_config": dequantising}
    with refused(f"{folder.path}: transformers can't load it", folder.config):
        loaded: Any = kind.from_pretrained(
            folder.path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trusted,
            output_loading_info=True,
            **packed,
        )
    module, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
    # Tensors that were not quantised keep their stored dtype (before transformers 5.23, those of MXFP4 too), which doesn't fit the rest.
    if dequantising is not None:
        for parameter in module.parameters():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.to(dtype)
    return module, info


def implementations(folder: ModelFolder) -> dict[str, Any]:
    """The attention and experts implementations to pass to transformers; empty if the config asks for none, or for ones that run anywhere.

    Kernels of particular devices (flash_attention_2) are not used, and a message says so once: they may be missing, and the small copies
    that decide what an architecture supports run where they don't. Transformers then chooses what the model allows (sdpa, eager).
    """
    asked = {name: getattr(folder.config, f"_{name}", None) for name in _ANYWHERE}
    others = {name: found for name, found in asked.items() if found not in (None, *_ANYWHERE[name])}
    for name, found in others.items():
        say_once(f"{folder.path.name}: its config asks for {name} {str(found)!r}, which isn't used here; transformers chooses another")
    return dict.fromkeys(others)
