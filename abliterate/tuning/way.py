"""How an edit is improved on: by gradients, by a search without them, or not at all; decided before anything runs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from abliterate.config import RunConfig
from abliterate.errors import InputError
from abliterate.progress import say

Way = Literal["gradient", "search", "off"]


def way_of(config: RunConfig, whole: bool) -> Way:
    """``auto`` is by gradients where the model is held ``whole`` on one device by one process, and the embedding is left alone.

    Raises InputError where what is asked for can't be done here.
    """
    embedded = config.embedding in ("edit", "untie")
    if config.tune == "auto":
        if not whole:
            say("the model isn't held whole on one device, so the edit isn't tuned by gradients; --tune search does without them")
        elif embedded:
            say(f"--embedding {config.embedding}: one direction for all blocks, so the edit isn't tuned")
        return "gradient" if whole and not embedded else "off"
    if config.tune == "gradient" and not whole:
        raise InputError("--tune gradient needs the model whole on one device; use --tune search, or give more --max-memory")
    if config.tune == "gradient" and embedded:
        raise InputError(f"--tune gradient gives each block a direction of its own: leave --embedding {config.embedding} out")
    if config.tune == "search" and find_spec("optuna") is None:
        raise InputError("--tune search needs optuna: pip install 'abliterate[search]'")
    return config.tune
