"""Build transformers' own model of a config on the meta device: names and shapes without weights."""

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
    """The auto class that loads a folder's whole config: a causal language model if there is one, else an image-text-to-text model."""
    remote = getattr(config, "auto_map", None) or {}
    writes = type(config) in AutoModelForCausalLM._model_mapping or AutoModelForCausalLM.__name__ in remote
    return AutoModelForCausalLM if writes else AutoModelForImageTextToText


def as_loaded(folder: Path, config: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The model that transformers loads for a folder with this (whole) config. Raises InputError if transformers can't build it.

    It uses the eager attention and experts: names and shapes are the same in all implementations, and the others don't run everywhere.
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
    """Silence transformers' log messages inside the context; its progress bars stay disabled afterwards."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def ties(module: PreTrainedModel) -> bool:
    """Whether a model ties its unembedding to its token embedding."""
    head = module.get_output_embeddings()  # type: ignore[no-untyped-call]
    named = module.named_parameters(remove_duplicate=False)
    return any(head is not None and weight is head.weight and name in module.all_tied_weights_keys for name, weight in named)
