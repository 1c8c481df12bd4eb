"""A family's small model as a run holds it in memory, with all that it may reuse or with nothing of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import CHATML, byte_tokenizer
from families import Case, small
from torch import Tensor

from abliterate.compute.passes import Pass
from abliterate.compute.whole.model import WholeModel
from abliterate.compute.whole.reuse import Reuse
from abliterate.model.folder import ModelFolder
from abliterate.model.layouts import layout_for


def held(case: Case, batch_size: int | None = None) -> WholeModel:
    """The family's small model, with an end token that it never says."""
    module = small(case).requires_grad_(False)
    config = module.config.get_text_config(decoder=True)
    layout = layout_for(config.model_type)
    assert layout is not None
    folder = ModelFolder(Path(str(case)), config.model_type, layout, config.num_hidden_layers, config.hidden_size, False, config)
    module.generation_config.eos_token_id = None
    module.generation_config.pad_token_id = 0
    tokenizer = byte_tokenizer(CHATML.replace("<|im_end|>", ""))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(200)  # beyond what a small model knows
    return WholeModel(folder, module, tokenizer, batch_size)


def with_reuse(model: WholeModel, reuse: Reuse, **fields: Any) -> WholeModel:
    """The same model, told what it may reuse."""
    other = replace(model, **fields)
    other.__dict__["reuse"] = reuse
    return other


def streams(model: WholeModel, passes: Sequence[Pass], last: int) -> list[Tensor]:
    """Each pass's streams, [sequence, index, position, d_model]; NaN where none was told."""
    shape = (model.folder.layers + 1, last, model.folder.d_model)
    found = [torch.full((len(asked.sequences), *shape), torch.nan) for asked in passes]

    def seen(number: int, indices: Sequence[int], index: int, stream: Tensor) -> None:
        assert torch.isnan(found[number][list(indices), index]).all(), "told twice"
        found[number][list(indices), index] = stream

    model.watch(passes, last, seen)
    return found


def logits(model: WholeModel, asked: Pass) -> Tensor:
    """A pass's logits [sequence, kept, vocab]."""
    found: dict[int, Tensor] = {}
    for _, indices, rows in model.logits([asked]):
        assert not found.keys() & set(indices), "given twice"
        found |= dict(zip(indices, rows, strict=True))
    return torch.stack([found[i] for i in range(len(asked.sequences))])


def replies(model: WholeModel, asked: Pass, tokens: int) -> list[list[int]]:
    """A pass's replies, each exactly once."""
    found: dict[int, list[int]] = {}
    for _, indices, made in model.replies([asked], tokens):
        assert not found.keys() & set(indices), "given twice"
        found |= dict(zip(indices, made, strict=True))
    return [found[i] for i in range(len(asked.sequences))]


@contextmanager
def shapes_seen(model: WholeModel) -> Iterator[list[tuple[int, int]]]:
    """Rows and tokens of every forward pass."""
    seen: list[tuple[int, int]] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(tuple((kwargs["input_ids"] if "input_ids" in kwargs else args[0]).shape))

    handle = model.module.base_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
