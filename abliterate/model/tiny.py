"""A tiny random model of the same architecture as a big one: the same config with small dimensions and a few blocks."""

from __future__ import annotations

import copy
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from abliterate.files import Json
from abliterate.model.failure import refused


@contextmanager
def tried(config: PretrainedConfig, what: str = "can't be tried on a small copy") -> Iterator[None]:
    """Context for everything that is done with a small copy: any exception means that the architecture is refused, with the reason.

    Raises InputError.
    """
    with refused(f"{config.model_type!r} {what}", config):
        yield


@cache
def _sizes() -> dict[str, Any]:
    return tomllib.loads(files("abliterate.model").joinpath("tiny.toml").read_text(encoding="utf-8"))


def tiny_config(config: PretrainedConfig, blocks: int) -> PretrainedConfig:
    """A text model's config with small dimensions and its first ``blocks`` blocks.

    What defines an architecture (which blocks attend, which are sparse, where norms are) is kept; sizes come from ``tiny.toml``. A
    text model without a head of its own is returned inside its vision-language model. Raises InputError if transformers can't
    use the result.
    """
    with tried(config):
        whole = _whole(config)
        return type(whole)(**_shrunk(whole.to_dict(), blocks))


def widen(config: PretrainedConfig) -> bool:
    """Let every block of a small copy attend to all tokens that it can hold; returns whether the config has any window."""
    sizes, text = _sizes(), config.get_text_config(decoder=True)
    short = [key for key in sizes["windows"]["keys"] if isinstance(getattr(text, key, None), int)]
    for key in short:
        setattr(text, key, sizes["size"]["max_position_embeddings"])
    return bool(short)


def side_keys() -> list[str]:
    """The config fields that set the side of a matrix."""
    return list(_sizes()["size"])


def _whole(config: PretrainedConfig) -> PretrainedConfig:
    """The config; if its class has no head, that of the vision-language model of the same module whose text part it is."""
    if type(config) not in AutoModelForCausalLM._model_mapping:
        for kind in vars(sys.modules[type(config).__module__]).values():
            if getattr(kind, "sub_configs", {}).get("text_config") is type(config) and kind in AutoModelForImageTextToText._model_mapping:
                tied = getattr(config, "tie_word_embeddings", False)
                whole: PretrainedConfig = kind(text_config=config.to_dict(), tie_word_embeddings=tied)
                return whole
    return config


def _shrunk(raw: Json, blocks: int) -> Json:
    sizes = _sizes()
    layers = next((raw[key] for key in sizes["blocks"]["count"] if isinstance(raw.get(key), int)), None)
    small: Json = {}
    for key, value in raw.items():
        if key in sizes["drop"]["keys"]:
            continue
        if key in sizes["size"] and isinstance(value, int) and not isinstance(value, bool) and value > 0:
            small[key] = min(value, sizes["size"][key]) if key in sizes["blocks"]["at_most"] else sizes["size"][key]
        elif key in sizes["blocks"]["count"]:
            small[key] = blocks
        elif isinstance(value, dict):
            small[key] = _nested(key, value, blocks, _rotated(raw, sizes), sizes)
        elif isinstance(value, list):
            small[key] = _listed(key, value, blocks, layers, sizes)
        else:
            small[key] = copy.deepcopy(value)
    small |= {
        key: small[other] for key, other in sizes["same"].items() if isinstance(raw.get(key), int) and isinstance(raw.get(other), int)
    }
    small |= {key: small[other] for key, other in sizes["equal"].items() if raw.get(key) is not None and raw.get(key) == raw.get(other)}
    small.update(sizes["tokens"])
    return small


def _rotated(raw: Json, sizes: Json) -> float:
    """The factor by which a head's rotated part shrinks."""
    key = next((key for key in sizes["rotated"]["dims"] if isinstance(raw.get(key), int)), None)
    if key is not None:
        return float(sizes["size"][key] / raw[key])
    hidden, heads = (raw.get(key) for key in sizes["rotated"]["quotient"])
    return float(sizes["size"]["head_dim"] * heads / hidden) if isinstance(hidden, int) and isinstance(heads, int) else 1.0


def _nested(key: str, value: Json, blocks: int, rotated: float, sizes: Json) -> Json:
    if key.endswith("_config"):
        if all(name.isdigit() for name in value):  # one entry per block
            return {name: _shrunk(entry, blocks) for name, entry in value.items() if int(name) < blocks}
        return _shrunk(value, blocks)
    small: Json = {}
    for name, entry in value.items():
        if isinstance(entry, dict):
            small[name] = _nested(name, entry, blocks, rotated, sizes)
        elif isinstance(entry, list) and name in sizes["rotated"]["pairs"]:
            small[name] = entry[: max(1, round(len(entry) * rotated))]
        elif isinstance(entry, list) and name in sizes["rotated"]["shares"]:
            ends = [round(end * rotated) for end in accumulate(entry)]
            small[name] = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        else:
            small[name] = copy.deepcopy(sizes["nested"].get(name, entry))
    return small


def _listed(key: str, value: list[Any], blocks: int, layers: int | None, sizes: Mapping[str, Any]) -> list[Any]:
    if key in sizes["blocks"]["numbers"]:  # a list of block numbers
        return [n for n in value if n < blocks]
    per_block = key in sizes["blocks"]["lists"] or (layers is not None and len(value) == layers)
    kept = value[:blocks] if per_block else value
    return [sizes["size"][key]] * len(kept) if key in sizes["size"] else copy.deepcopy(kept)


def tiny_model(config: PretrainedConfig, trust_remote_code: bool = False, seed: int = 0) -> PreTrainedModel:
    """A random model in float32, with norms and biases that are not the identity. Raises InputError if it can't be built."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=[]):  # a small copy must not change the run's own random numbers
        torch.manual_seed(seed)
        return _built(config, trust_remote_code)


def _built(config: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    kind = AutoModelForCausalLM if config.get_text_config() is config else AutoModelForImageTextToText
    with tried(config):
        made = kind.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code)  # type: ignore[no-untyped-call]
    model: PreTrainedModel = made.train(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim < 2:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    with tried(config, "has a small copy that can't be run"), torch.no_grad():  # fails at the latest here if sizes don't fit together
        model(input_ids=probe(), use_cache=False)
    return model


def probe() -> Tensor:
    """Token ids [1, token] that are valid in every small copy."""
    return torch.arange(3, 15)[None]
