"""Guess a layout for an architecture that no family lists, from a small random copy; the self-check must then prove it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from abliterate.errors import InputError
from abliterate.model.layouts import Layout, guess_table, layout_from
from abliterate.model.tensor_names import in_memory, template, text_name
from abliterate.model.tiny import tiny_config, tiny_model, tried


def guess_layout(config: PretrainedConfig, trust_remote_code: bool = False) -> Layout:
    """Find the writers of a small copy by the names and shapes that writers have in other architectures.

    Raises InputError if nothing looks like blocks or writers. A guess may be wrong; it counts only if the self-check passes.
    """
    with tried(config):
        return _read_off(config, trust_remote_code)


def _read_off(config: PretrainedConfig, trust_remote_code: bool) -> Layout:
    blocks = min(int(config.num_hidden_layers), 8)
    model = tiny_model(tiny_config(config, blocks), trust_remote_code)
    table, modules = guess_table(), dict(model.named_modules())
    block = next((b for b in table["blocks"] if in_memory(b.format(0), modules) in modules), None)
    embedding = next((e for e in table["embeddings"] if in_memory(e, modules) in modules), None)
    if block is None or embedding is None:
        raise InputError("its small copy has no decoder blocks or token embedding under a known name")
    width = int(model.config.get_text_config().hidden_size)
    inner = _tensors(model, block)
    inside = _inside(modules, block, blocks)
    norms, offset = _norms(inside, table)
    entry: dict[str, Any] = {"block": block, "embedding": embedding}
    if positions := next((p for p in table["positions"] if isinstance(modules.get(in_memory(p, modules)), nn.Embedding)), None):
        entry["positions"] = positions
    for component in ("attention", "mlp"):
        entry[component] = [
            writer | ({"norm": norms[component], "offset": offset, "module": norms[component]} if norms else {})
            for writer in _writers(inner, component, width, table, inside)
        ]
    if not entry["attention"] and not entry["mlp"]:
        raise InputError("nothing in its blocks looks like a writer")
    return layout_from(f"guessed from {config.model_type}", entry)


def _tensors(model: PreTrainedModel, block: str) -> dict[str, tuple[int, ...]]:
    """Templates of the names inside blocks, as transformers saves them, each with the shape of the first match."""
    pattern = re.compile(re.escape(block).replace(r"\{\}", r"\d+") + r"\.(.+)")
    found: dict[str, tuple[int, ...]] = {}
    with tempfile.TemporaryDirectory(prefix="abliterate-guess-") as place:
        with tried(model.config, "has a small copy that can't be saved"):  # saving undoes what loading does to names
            model.save_pretrained(place)
        with safe_open(Path(place) / "model.safetensors", framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if match := pattern.fullmatch(text_name(name) or ""):
                    found.setdefault(template(match[1]), tuple(file.get_slice(name).get_shape()))
    return found


def _inside(modules: Mapping[str, nn.Module], block: str, blocks: int) -> dict[str, nn.Module]:
    """The modules of all blocks by their name inside the block; the first one of each name."""
    found: dict[str, nn.Module] = {}
    for start in (in_memory(block.format(layer), modules) + "." for layer in range(blocks)):
        for name, module in modules.items():
            if name.startswith(start):
                found.setdefault(name.removeprefix(start), module)
    return found


def _writers(
    inner: Mapping[str, tuple[int, ...]], component: str, width: int, table: Mapping[str, Any], inside: Mapping[str, nn.Module]
) -> list[dict[str, Any]]:
    """Matrices with names that writers usually have, and the axis that d_model has in their kind of module."""
    made = []
    for name, shape in inner.items():
        path = name.removesuffix(".weight").split(".")
        mixer = any(word in part.lower() for part in path[:-1] for word in table["mixers"])
        if path[-1] not in table[component] or mixer != (component == "attention") or width not in shape or len(shape) not in (2, 3):
            continue
        own = inside.get(".".join(path))
        axis = 1 if type(own).__name__ == "Conv1D" else shape.index(width)
        made.append({"weight": name, "axis": axis} | ({"module": ".".join(path)} if own is not None else {}))
    return made


def _norms(inside: Mapping[str, nn.Module], table: Mapping[str, Any]) -> tuple[dict[str, str], int]:
    """The post-norms of attention and MLP, if the blocks have a pair that the table names, and whether they multiply by 1 + w."""
    for pair in table["norms"]:
        if pair and all(name in inside for name in pair):
            return {"attention": pair[0], "mlp": pair[1]}, _offset(inside[pair[0]])
    return {}, 0


@torch.no_grad()
def _offset(norm: nn.Module) -> int:
    """1 if the norm still lets something through when its weight is zero, else 0."""
    weight = next(norm.parameters())
    kept = weight.clone()
    weight.zero_()
    passes = bool(norm(torch.ones(1, 1, weight.shape[-1]).cumsum(-1)).abs().sum() > 0)
    weight.copy_(kept)
    return int(passes)
