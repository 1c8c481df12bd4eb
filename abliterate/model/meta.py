"""Transformers' own model of a config on the meta device: names and shapes, no numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import logging

from abliterate.model.failure import refused


def class_for(config: PretrainedConfig) -> Any:
    """The class that loads a folder's whole config: the one of models that write text, else of those that see, too."""
    remote = getattr(config, "auto_map", None) or {}
    writes = type(config) in AutoModelForCausalLM._model_mapping or AutoModelForCausalLM.__name__ in remote
    return AutoModelForCausalLM if writes else AutoModelForImageTextToText


def as_loaded(folder: Path, config: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The model that a folder of this (whole) config is loaded as. Raises InputError where transformers can't build it.

    Its attention and experts are the plain ones: names and shapes are the same in all, and not every machine has every other.
    """
    plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
    failed = refused(f"{folder}: transformers can't build it", config)
    with failed, quiet(), no_init_weights(), init_empty_weights(include_buffers=False):
        made: PreTrainedModel = class_for(config).from_config(
            copy.deepcopy(config), dtype=torch.bfloat16, trust_remote_code=trust_remote_code, **plain
        )
    return made


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers says nothing of what is only tried."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def ties(module: PreTrainedModel) -> bool:
    """Whether a model takes its unembedding to be its token embedding, by its config."""
    head = module.get_output_embeddings()  # type: ignore[no-untyped-call]
    named = module.named_parameters(remove_duplicate=False)
    return any(head is not None and weight is head.weight and name in module.all_tied_weights_keys for name, weight in named)
