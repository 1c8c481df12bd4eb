"""Collect a prompt set's activations: one pass over the prompts, statistics on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.activations.statistics import RunningMoments
from abliterate.errors import InputError
from abliterate.model.forward import batches
from abliterate.model.hooks import captured
from abliterate.model.load import LocalModel


@dataclass(frozen=True)
class SetActivations:
    """Statistics of one prompt set; the first axis of the means runs over positions -1, -2, ... (last token first).

    ``vectors`` holds every position after collection, and the last one only when read back from a file.
    """

    mean: Float[Tensor, "position layer_plus_1 d_model"]
    second_moment: Float[Tensor, "position layer_plus_1 d_model"]
    vectors: Float[Tensor, "prompt kept_position layer_plus_1 d_model"]

    @property
    def last(self) -> Float[Tensor, "prompt layer_plus_1 d_model"]:
        """The vectors at the last position."""
        return self.vectors[:, 0]

    def only(self, chosen: Sequence[int]) -> SetActivations:
        """The same statistics over some of the prompts, from their vectors."""
        picked = self.vectors[list(chosen)].double()
        return SetActivations(picked.mean(0).float(), picked.square().mean(0).float(), picked.float())


@torch.inference_mode()
def collect(
    model: LocalModel,
    prompts: Sequence[Sequence[int]],
    positions: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> SetActivations:
    """Activations of encoded prompts at their last ``positions`` tokens; ``advance`` hears of each batch done.

    Raises InputError where a stream is not finite, naming the first layer at which it is so.
    """
    if prompts and min(map(len, prompts)) < positions:
        raise InputError(f"--positions {positions}: the shortest prompt has only {min(map(len, prompts))} tokens")
    shape = (positions, model.folder.layers + 1, model.folder.d_model)
    moments = RunningMoments(shape)
    vectors = torch.empty(len(prompts), *shape)
    with captured(model, positions) as seen:
        for batch in batches(prompts, model.tokenizer.pad_token_id, batch_size, model.device):
            model.module.base_model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            )
            stream = torch.stack([seen[i] for i in range(shape[1])], dim=2).flip(1).cpu()
            _check_finite(stream, model)
            moments.update(stream)
            vectors[list(batch.indices)] = stream
            advance(len(batch.indices))
    return SetActivations(moments.mean(), moments.second_moment(), vectors)


def _check_finite(stream: Float[Tensor, "prompt position layer_plus_1 d_model"], model: LocalModel) -> None:
    bad = ~torch.isfinite(stream).all(-1).all(1).all(0)
    if bad.any():
        first = int(bad.nonzero()[0, 0])
        where = "the embedding's output" if first == 0 else f"the residual stream after block {first - 1}"
        raise InputError(
            f"{model.folder.path}: {where} holds NaN or infinite values; the checkpoint is damaged, or {model.module.dtype} is too "
            "narrow for it (try --dtype float32)"
        )
