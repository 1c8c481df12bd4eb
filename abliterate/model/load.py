"""A model in memory with its tokenizer and layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from abliterate.errors import InputError, first_line
from abliterate.model.folder import ModelFolder, open_folder
from abliterate.model.template import load_tokenizer

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class LocalModel:
    """A model ready to run: frozen, in evaluation mode, on one device."""

    folder: ModelFolder
    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA, else MPS, else CPU. Raises InputError for a device that isn't there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
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


def load_model(path: Path, dtype: DTypeName = "auto", device: str = "auto", trust_remote_code: bool = False) -> LocalModel:
    """Load a folder's model by transformers. Raises InputError where the folder, tokenizer or weights are unfit."""
    folder = open_folder(path, trust_remote_code)
    tokenizer = load_tokenizer(path, trust_remote_code)
    where = pick_device(device)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    module, loading = _from_pretrained(path, pick_dtype(dtype, where), trust_remote_code)
    if missing := sorted(loading["missing_keys"]):
        raise InputError(f"{path}: the checkpoint lacks {missing[0]!r} ({len(missing)} tensors missing); download it again")
    module.to(where)  # type: ignore[arg-type]
    module.train(False)
    module.requires_grad_(False)
    advice = module.generation_config
    module.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # its sampling and penalties don't apply here
        eos_token_id=advice.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return LocalModel(folder, module, tokenizer, where)


def _from_pretrained(path: Path, dtype: torch.dtype, trust_remote_code: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what transformers says of keys that were missing. Raises InputError where it can't be loaded."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path}: transformers can't load it ({first_line(error)})") from None
    return cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
