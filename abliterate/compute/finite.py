"""Numbers that are none: NaN and infinity in what a model computes are refused, in one line that says where they begin.

Looking is cheap: the largest logit of a row is NaN where any of them is, and infinite where one is or all are minus infinity. Only where
that is so does the one sequence go through the model again, block by block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from abliterate.compute.passes import NO_INTERVENTION, Advance, Intervention, Pass, Seen, no_progress
from abliterate.errors import InputError
from abliterate.model.folder import ModelFolder
from abliterate.model.index import open_index
from abliterate.model.stored import Stored, by_block
from abliterate.model.tensor_names import text_name


@runtime_checkable
class Streaming(Protocol):
    """A model in this process: its streams are told as ``Model.watch`` tells them, whatever numbers they hold."""

    @property
    def folder(self) -> ModelFolder: ...

    @property
    def module(self) -> PreTrainedModel: ...

    def streams(self, passes: Sequence[Pass], last: int, seen: Seen, advance: Advance = no_progress) -> None: ...


class NotFiniteError(Exception):
    """Something that isn't finite was computed of a sequence, ``ids``."""

    def __init__(self, ids: Sequence[int], intervention: Intervention | None = None) -> None:
        super().__init__("not finite")
        self.ids, self.intervention = list(ids), intervention


@contextmanager
def traced(model: Streaming, intervention: Intervention = NO_INTERVENTION) -> Iterator[None]:
    """Around what computes under an intervention: where something isn't finite, an InputError says where that begins, and what to do."""
    try:
        yield
    except NotFiniteError as error:
        found = error.intervention or intervention
        raise InputError(_line(model, _beginning(model, error.ids, found), found)) from None


def watched(passes: Sequence[Pass], seen: Seen) -> Seen:
    """``seen``, told of finite streams alone. Raises NotFiniteError of the others."""

    def checked(number: int, indices: Sequence[int], index: int, stream: Float[Tensor, "row position d_model"]) -> None:
        if not torch.isfinite(stream).all():
            row = int(torch.isfinite(stream).flatten(1).all(1).int().argmin())
            raise NotFiniteError(passes[number].sequences[indices[row]], passes[number].intervention)
        seen(number, indices, index, stream)

    return checked


def check_logits(asked: Pass, indices: Sequence[int], logits: Float[Tensor, "row kept vocab"]) -> None:
    """Raise NotFiniteError where a row of logits of the unedited model isn't finite at a position of its own sequence.

    Under a change they are left to whoever tries it: a candidate that breaks the model is only a bad one.
    """
    if asked.intervention.alters:
        return
    fit = torch.isfinite(logits.amax(-1))
    if fit.all():
        return
    for row, index in enumerate(indices):
        own = min(len(asked.sequences[index]), logits.shape[1])
        if not fit[row, -own:].all():
            raise NotFiniteError(asked.sequences[index])


class FiniteScores(LogitsProcessor):
    """Has transformers' ``generate`` stop where a row of its logits isn't finite. Raises NotFiniteError; what was padded is left out."""

    def __init__(self, mask: Tensor) -> None:
        self._own = mask.sum(-1).tolist()
        self._width = mask.shape[-1]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        for row, fit in enumerate(torch.isfinite(scores.amax(-1)).tolist()):
            if not fit:
                raise NotFiniteError(input_ids[row, self._width - int(self._own[row]) :].tolist())
        return scores


class _FoundError(Exception):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def _beginning(model: Streaming, ids: Sequence[int], intervention: Intervention) -> int | None:
    """The first activation index at which the streams of a sequence aren't finite; None where they all are."""

    def seen(number: int, indices: Sequence[int], index: int, stream: Float[Tensor, "row position d_model"]) -> None:
        if not torch.isfinite(stream).all():
            raise _FoundError(index)

    try:
        model.streams([Pass([list(ids)], intervention)], len(ids), seen)
    except _FoundError as found:
        return found.index
    return None


def _line(model: Streaming, index: int | None, intervention: Intervention) -> str:
    """What is wrong, where, and what to do: the weights there are looked at, and only where they are finite may a wider type help."""
    folder, dtype = model.folder, model.module.dtype
    where = (
        "the unembedding" if index is None else "the embedding's output" if index == 0 else f"the residual stream after block {index - 1}"
    )
    said = f"{folder.path}: {where} is the first to hold NaN or infinite values{' under an edit' if intervention.alters else ''}"
    damaged = next((s.name for s in _weights(folder, index) if not _is_finite(s)), None)
    if damaged is not None:
        return f"{said}, and so do its weights ({damaged}): the checkpoint is damaged; download it again"
    if dtype.itemsize < torch.float32.itemsize:
        return f"{said}, while its weights are finite: {str(dtype).removeprefix('torch.')} is too narrow for it; try --dtype float32"
    return f"{said}, while its weights are finite: they are not those of a model that works, or its config is not theirs"


def _weights(folder: ModelFolder, index: int | None) -> list[Stored]:
    """The stored tensors that a part of the model computes with: a block, or what stands before or behind all of them."""
    stored = by_block(open_index(folder.path), folder)
    if index:
        return stored[index - 1]
    return [s for s in stored[None] if index is None or text_name(s.name) != folder.layout.unembedding]


def _is_finite(tensor: Stored) -> bool:
    values = tensor.values()
    return not values.is_floating_point() or bool(torch.isfinite(values).all())
