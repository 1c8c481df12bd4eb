"""How an edit is improved on: by gradients, by a search without them, or not at all; decided before anything runs."""

from __future__ import annotations

from typing import Literal

from abliterate.choice.search import check_installed
from abliterate.config import RunConfig
from abliterate.errors import InputError
from abliterate.terminal.progress import say

TuningMethod = Literal["gradient", "search", "off"]


def method_of(config: RunConfig, whole: bool) -> TuningMethod:
    """``auto`` is by gradients where the model is held ``whole`` on one device by one process, and the embedding is left alone."""
    if config.tune == "auto":
        return "gradient" if whole and not _embedded(config) else "off"
    return config.tune


def settled_method(config: RunConfig, whole: bool) -> TuningMethod:
    """The way, said where it is not to be expected. Raises InputError where what is asked for can't be done here."""
    embedded = _embedded(config)
    if config.tune == "auto" and not whole:
        say("the model isn't held whole on one device, so the edit isn't tuned by gradients; --tune search does without them")
    elif config.tune == "auto" and embedded:
        say(f"--embedding {config.embedding}: one direction for all blocks, so the edit isn't tuned")
    if config.tune == "gradient" and not whole:
        raise InputError("--tune gradient needs the model whole on one device; use --tune search, or give more --max-memory")
    if config.tune == "gradient" and embedded:
        raise InputError(f"--tune gradient gives each block a direction of its own: leave --embedding {config.embedding} out")
    if config.tune == "search":
        check_installed()
    return method_of(config, whole)


def _embedded(config: RunConfig) -> bool:
    return config.embedding in ("edit", "untie")
