"""What the word of a record counts for where its run is run again: it may be a stranger's file.

Every setting that a record can hold stands in one of two tables. What stands in neither is not taken.
"""

from __future__ import annotations

from typing import Any

from abliterate.config.base import is_url

# What is measured, and how much of the machine it takes. The models and prompts among them are only read, whatever they are.
TAKEN = frozenset((
    "model", "base", "derived", "reference", "revision", "base_revision", "derived_revision",
    "target", "baseline", "keep", "harmless", "prompts", "limit", "split",
    "dtype", "device", "max_memory", "batch_size", "thinking", "tensor_parallel", "pipeline_parallel",
    "positions", "estimators", "candidates", "max_kl", "max_layer", "min_share",
    "tune", "tune_steps", "tune_directions", "seed", "prefer", "trials", "strength", "embedding", "norms",
    "max_new_tokens", "settle", "transcripts", "margin", "weights_only",
    "engine_model", "derived_engine_model", "concurrency", "request_timeout", "patience",
))  # fmt: skip
_SERVER = "a server is sent the prompts, and a key"
# What is taken from the command line alone, and what it can do.
ONLY_TOLD = {
    "trust_remote_code": "code that comes with a model is run",
    "layout": "a file of this machine is read",
    "engine": _SERVER,
    "edited_engine": _SERVER,
    "study": "a file or a database is written to",
    "lm_eval": "a task runs code of its own",
}


def why_not_taken(name: str, value: Any) -> str | None:
    """What a setting of a record could do that must be told on the command line; None for one that is taken as it stands."""
    values = value if isinstance(value, list | tuple) else [value]
    if name in TAKEN:
        return _SERVER if any(isinstance(each, str) and is_url(each) for each in values) else None
    return ONLY_TOLD.get(name, "it isn't known what it could do")
