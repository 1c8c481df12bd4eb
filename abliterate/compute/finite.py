"""Refuse NaN and infinity in what a model computes, with one line that says where they begin.

The check is cheap: the largest logit of a row is NaN if any of its logits is, and infinite if one is or all are minus infinity. Only in
that case does the one sequence go through the model again, block by block.
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
    """A model in this process that reports its streams as ``Model.watch`` does, but without checking that they are finite."""

    @property
    def folder(self) -> ModelFolder: ...

    @property
    def module(self) -> PreTrainedModel: ...

    def streams(self, passes: Sequence[Pass], last: int, seen: Seen, advance: Advance = no_progress) -> None: ...


class NotFiniteError(Exception):
    """The model computed NaN or infinity for the sequence ``ids``."""

    def __init__(self, ids: Sequence[int], intervention: Intervention | None = None) -> None:
        super().__init__("not finite")
        self.ids, self.intervention = list(ids), intervention


@contextmanager
def traced(model: Streaming, intervention: Intervention = NO_INTERVENTION) -> Iterator[None]:
    """Context for computing under an intervention: turns NotFiniteError into an InputError that says where it begins and what to do."""
    try:
        yield
    except NotFiniteError as error:
        found = error.intervention or intervention
        raise InputError(_line(model, _beginning(model, error.ids, found), found)) from None


def watched(passes: Sequence[Pass], seen: Seen) -> Seen:
    """``seen``, called for finite streams only. Raises NotFiniteError for the others."""

    def checked(number: int, indices: Sequence[int], index: int, stream: Float[Tensor, "row position d_model"]) -> None:
        if not torch.isfinite(stream).all():
            row = int(torch.isfinite(stream).flatten(1).all(1).int().argmin())
            raise NotFiniteError(passes[number].sequences[indices[row]], passes[number].intervention)
        seen(number, indices, index, stream)

    return checked


def check_logits(asked: Pass, indices: Sequence[int], logits: Float[Tensor, "row kept vocab"]) -> None:
    """Raise NotFiniteError if a row of logits of the unedited model isn't finite at a position of its own sequence.

    With an intervention, the caller decides: a candidate that breaks the model is only a bad candidate.
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
    """Stop transformers' ``generate`` if a row of its logits isn't finite. Raises NotFiniteError with the row's ids without padding."""

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
    """The first activation index at which the streams of a sequence aren't finite; None if they all are."""

    def seen(number: int, indices: Sequence[int], index: int, stream: Float[Tensor, "row position d_model"]) -> None:
        if not torch.isfinite(stream).all():
            raise _FoundError(index)

    try:
        model.streams([Pass([list(ids)], intervention)], len(ids), seen)
    except _FoundError as found:
        return found.index
    return None


def _line(model: Streaming, index: int | None, intervention: Intervention) -> str:
    """What is wrong, where, and what to do. The weights of that part are checked too: only if they are finite can a wider dtype help."""
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
    return f"{said}, while its weights are finite: the model is broken, or config.json belongs to other weights"


def _weights(folder: ModelFolder, index: int | None) -> list[Stored]:
    """The stored tensors that a part of the model uses: a block, or what comes before or after all blocks."""
    stored = by_block(open_index(folder.path), folder)
    if index:
        return stored[index - 1]
    return [s for s in stored[None] if index is None or text_name(s.name) != folder.layout.unembedding]


def _is_finite(tensor: Stored) -> bool:
    values = tensor.values()
    return not values.is_floating_point() or bool(torch.isfinite(values).all())
