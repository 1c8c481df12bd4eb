"""Tiny random models in quantised formats, as their makers store them; for the tests of formats and of the proof."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from abliterate.model.formats import fp8
from abliterate.model.formats.fp8 import SCALES
from abliterate.model.formats.fp8_tensor import INPUTS
from abliterate.model.formats.mxfp4 import BLOCKS, EXPONENTS
from abliterate.model.formats.rounding import round_nearest
from abliterate.model.index import INDEX, SINGLE
from abliterate.model.tiny import tiny_config, tiny_model

FP8_SETTINGS = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
MXFP4_SETTINGS = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
}


def save_architecture(folder: Path, model_type: str, layers: int = 2, **changes: Any) -> Path:
    """A random float32 model of an architecture with the sizes of ``tiny.toml`` and ``changes`` to its config; no tokenizer."""
    config = tiny_config(AutoConfig.for_model(model_type), layers)
    for key, value in changes.items():
        setattr(config, key, value)
    tiny_model(config).save_pretrained(folder)
    return folder


def set_config(folder: Path, **changes: Any) -> None:
    """Change keys of a config.json; None drops one."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept, indent=2), encoding="utf-8")


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def store(folder: Path, tensors: Mapping[str, Tensor], shard: Callable[[str], str] | None = None) -> None:
    """Put ``tensors`` in the place of a folder's weights: one file, or those that ``shard`` names, with an index."""
    for old in [*folder.glob("*.safetensors"), *folder.glob(INDEX)]:
        old.unlink()
    where = {name: shard(name) if shard else SINGLE for name in tensors}
    for file in set(where.values()):
        save_file({n: t.contiguous() for n, t in tensors.items() if where[n] == file}, folder / file, {"format": "pt"})
    if shard:
        total = sum(t.nbytes for t in tensors.values())
        index = {"metadata": {"total_size": total, "note": "kept"}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _by_layer(name: str) -> str:
    """Shards in which the scales of a tensor lie in another file than its values."""
    if name.endswith((SCALES, EXPONENTS)):
        return "model-00003-of-00003.safetensors"
    return f"model-0000{2 if '.layers.1.' in name else 1}-of-00003.safetensors"


def save_fp8(
    folder: Path,
    model_type: str = "deepseek_v3",
    *,
    sharded: bool = False,
    layers: int = 2,
    d_model: int = 256,
    scales: torch.dtype = torch.float32,
    powers: bool = False,
    **settings: Any,
) -> Path:
    """A model whose projections are block-scaled FP8 and whose other weights are bf16, as DeepSeek-V3 is stored."""
    changes = {"first_k_dense_replace": 1} if model_type == "deepseek_v3" else {}
    save_architecture(folder, model_type, layers, hidden_size=d_model, **changes)
    packed: dict[str, Tensor] = {}
    for name, weight in tensors_of(folder).items():
        if name.endswith(("_proj.weight", "_proj_with_mqa.weight")) and weight.ndim == 2:
            packed[name], packed[name + SCALES] = fp8.requantise(weight, torch.zeros(0, weight.shape[0]), (128, 128), scales, powers)
        else:
            packed[name] = weight if "e_score" in name else weight.bfloat16()
    store(folder, packed, _by_layer if sharded else None)
    set_config(folder, quantization_config={**FP8_SETTINGS, **({"scale_fmt": "ue8m0"} if powers else {}), **settings})
    return folder


def save_fp8_tensor(
    folder: Path, model_type: str = "ministral3", *, sharded: bool = False, layers: int = 2, scales: torch.dtype = torch.bfloat16
) -> Path:
    """A model whose projections are FP8 with one scale a matrix, and one for their inputs, as Ministral 3 is stored."""
    save_architecture(folder, model_type, layers, hidden_size=256)
    packed: dict[str, Tensor] = {}
    for name, weight in tensors_of(folder).items():
        if name.endswith("_proj.weight"):
            scale = (weight.abs().max() / fp8.LARGEST).to(scales)
            packed[name] = round_nearest(weight / scale.float(), fp8.FP8)
            packed[name + SCALES], packed[name.removesuffix(".weight") + INPUTS] = scale, torch.tensor(0.5, dtype=scales)
        else:
            packed[name] = weight.bfloat16()
    store(folder, packed, _by_layer if sharded else None)
    settings = {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static", "modules_to_not_convert": ["lm_head"]}
    set_config(folder, quantization_config=settings)
    return folder


def save_mxfp4(folder: Path, *, sharded: bool = False, layers: int = 2) -> Path:
    """A model whose experts are MXFP4 and whose other weights are bf16, as gpt-oss is stored."""
    save_architecture(folder, "gpt_oss", layers, intermediate_size=64)
    packed: dict[str, Tensor] = {}
    draw = torch.Generator().manual_seed(7)
    for name, weight in tensors_of(folder).items():
        if name.endswith(("experts.down_proj", "experts.gate_up_proj")):
            experts, columns, rows = weight.shape
            groups = (experts, rows, columns // 32)
            packed[name + BLOCKS] = torch.randint(0, 256, (*groups, 16), dtype=torch.uint8, generator=draw)
            packed[name + EXPONENTS] = torch.randint(118, 126, groups, dtype=torch.uint8, generator=draw)
        else:
            packed[name] = weight.bfloat16()
    store(folder, packed, _by_layer if sharded else None)
    set_config(folder, quantization_config=MXFP4_SETTINGS)
    return folder
