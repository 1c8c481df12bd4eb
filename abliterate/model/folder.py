"""What a model folder says about itself in its config, without loading a weight."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from abliterate.errors import InputError, first_line
from abliterate.model.layouts import Layout, layout_for


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder and the figures of its config that an edit needs."""

    path: Path
    model_type: str
    layout: Layout
    layers: int
    d_model: int
    tied: bool


def open_folder(path: Path, trust_remote_code: bool = False) -> ModelFolder:
    """Read ``config.json``. Raises InputError: no folder, no or broken config, unknown architecture, quantised weights."""
    if not path.is_dir():
        raise InputError(f"{path}: no such model folder")
    file = path / "config.json"
    if not file.is_file():
        raise InputError(f"{path}: no config.json in it; give the folder of a transformers model")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        model_type = str(raw["model_type"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{file}: not a model config (JSON with 'model_type')") from None
    if raw.get("quantization_config"):
        quantised = raw["quantization_config"]
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise InputError(f"{path}: the weights are quantised ({method}); give the unquantised checkpoint (bf16, fp16 or fp32)")
    layout = layout_for(model_type)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a config it can't use
        raise InputError(f"{file}: transformers can't use it ({first_line(error)})") from None
    if min(int(config.num_hidden_layers), int(config.hidden_size)) < 1:
        raise InputError(f"{file}: num_hidden_layers and hidden_size must be at least 1")
    return ModelFolder(
        path=path,
        model_type=model_type,
        layout=layout,
        layers=int(config.num_hidden_layers),
        d_model=int(config.hidden_size),
        tied=bool(config.tie_word_embeddings),
    )
