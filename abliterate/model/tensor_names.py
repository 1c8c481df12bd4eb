"""What a tensor's name says: its template, its place in the text model, and whether a wrapper around the model changed it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import cache, lru_cache

from abliterate.model.layout_table import table

_NUMBER = re.compile(r"\.\d+(?=\.|$)")


def template(name: str) -> str:
    """A name with its numbers replaced by ``*``."""
    return _NUMBER.sub(".*", name)


def in_memory(name: str, names: Collection[str]) -> str:
    """A text model's module name as it appears among ``names``, all modules of a model: vision-language models nest the text model."""
    if name in names:
        return name
    for prefix, text in table()["text"]["prefixes"]:
        if name.startswith(text) and prefix + name.removeprefix(text) in names:
            return str(prefix) + name.removeprefix(text)
    return name


@lru_cache(maxsize=1 << 18)
def text_name(name: str) -> str | None:
    """A tensor's name in the text model; None for the vision and audio parts of a checkpoint."""
    shorter, prefixes, others = _prefixes()
    if name.startswith(prefixes):
        return next(short + name.removeprefix(prefix) for prefix, short in shorter if name.startswith(prefix))
    return None if name.startswith(others) else name


def projector_axis(name: str, names: Collection[str] = ()) -> int | None:
    """The axis of size d_model in a vision projector's last layer; None for every other tensor.

    ``names`` are all tensors of the checkpoint. Without them, its bias and a layer that is last only in some projectors are not recognised.
    """
    short = name.removeprefix("model.")
    inner = (short, template(short))
    for layer in table()["text"]["projectors"]:
        weight, follower = layer["weight"], layer.get("unless")
        biased = bool(names) and weight.endswith(".weight") and weight.removesuffix("weight") + "bias" in inner
        if weight not in inner and not biased:
            continue
        if not follower or (names and all(other.removeprefix("model.") != follower for other in names)):
            return 0 if biased else int(layer["axis"])
    return None


def is_buffer(name: str) -> bool:
    """Whether a tensor is one that transformers computes itself although some checkpoints still store it."""
    return name.endswith(tuple(f".{buffer}" for buffer in table()["buffers"]["names"]))


def wrapped_by(names: Iterable[str]) -> str | None:
    """A message about the first name that a wrapper around the model has changed; None if no name is."""
    wrappers = table()["wrappers"]
    for name in names:
        for part in name.split("."):
            if part in wrappers:
                return f"{name} is not a model's own name: {wrappers[part]}"
    return None


@cache
def _prefixes() -> tuple[list[tuple[str, str]], tuple[str, ...], tuple[str, ...]]:
    """The prefixes of text models with their replacements, the prefixes alone, and the prefixes of other parts."""
    text = table()["text"]
    shorter = [(str(prefix), str(short)) for prefix, short in text["prefixes"]]
    return shorter, tuple(prefix for prefix, _ in shorter), tuple(text["others"])
