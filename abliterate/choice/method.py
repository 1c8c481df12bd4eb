"""Decide, before anything runs, how the edit is tuned: by gradients, by a search without gradients, or not at all."""

from __future__ import annotations

from typing import Literal

from abliterate.choice.search import check_installed
from abliterate.config import RunConfig
from abliterate.errors import InputError
from abliterate.terminal.progress import say

TuningMethod = Literal["gradient", "search", "off"]


def method_of(config: RunConfig, whole: bool) -> TuningMethod:
    """The tuning method. ``auto`` means gradients if one process holds the ``whole`` model on one device and the embedding is not edited,
    and no tuning otherwise."""
    if config.tune == "auto":
        return "gradient" if whole and not _embedded(config) else "off"
    return config.tune


def settled_method(config: RunConfig, whole: bool) -> TuningMethod:
    """The tuning method; prints a line if ``auto`` turns tuning off. Raises InputError if the requested method can't be used here."""
    embedded = _embedded(config)
    if config.tune == "auto" and not whole:
        say("the model isn't whole on one device, so the edit isn't tuned by gradients; --tune search works without gradients")
    elif config.tune == "auto" and embedded:
        say(f"--embedding {config.embedding} needs one direction for all blocks, so the edit isn't tuned")
    if config.tune == "gradient" and not whole:
        raise InputError("--tune gradient needs the model whole on one device; use --tune search, or raise --max-memory")
    if config.tune == "gradient" and embedded:
        raise InputError(
            f"--tune gradient uses one direction per block and can't edit the embedding: leave --embedding {config.embedding} out"
        )
    if config.tune == "search":
        check_installed()
    return method_of(config, whole)


def _embedded(config: RunConfig) -> bool:
    return config.embedding in ("edit", "untie")
