"""Send all prompts through a model block by block: each block is loaded once, whatever the number of prompts.

The model's own forward is called with blocks that only record their arguments (masks, rotary embeddings, whatever the family passes);
then every block is called with these arguments when its turn comes. No part of an architecture is reimplemented here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache

from abliterate.compute.blockwise.blocks import Blocks
from abliterate.compute.blockwise.spill import Spill
from abliterate.compute.forward import Batch
from abliterate.compute.load import InMemory
from abliterate.compute.passes import Intervention
from abliterate.model.folder import ModelFolder
from abliterate.model.tiny import probe, tiny_config, tiny_model, tried


@dataclass
class RunningBatch:
    """A micro-batch on its way through the blocks under an intervention, and the arguments that the model's own forward gives each block.

    ``number`` is its pass. ``cache`` holds its keys and values, if they begin with a prefix or must be kept (``keep``).
    """

    number: int
    intervention: Intervention
    batch: Batch
    cache: Cache | None = None
    keep: bool = False
    stream: Tensor = field(default_factory=lambda: torch.empty(0))
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def inputs(self) -> dict[str, Any]:
        """The arguments of the model's forward."""
        return {**self.batch.inputs(), "past_key_values": self.cache, "use_cache": self.cache is not None}


@dataclass(frozen=True)
class Abilities:
    """What an architecture's blocks support when they are called one after the other.

    ``arity``: how many things they return in a tuple, 0 for the stream alone. ``cached``: keys and values can be kept for the next token.
    ``shared``: those of a prefix can be computed once for all rows. ``padded``: rows of different lengths can share a batch.
    """

    arity: int
    padded: bool = True
    cached: bool = False
    shared: bool = False


class BlockwiseForward:
    """The model's own forward, taken apart into its beginning, its blocks and its end."""

    def __init__(self, blocks: Blocks, spill: Spill, arity: int) -> None:
        self._blocks, self._spill, self._arity = blocks, spill, arity
        self._layers = blocks.folder.layers

    def enter(self, passage: RunningBatch) -> None:
        """Compute what enters the first block, and record the arguments of every block."""

        def noting(layer: int) -> Callable[..., Any]:
            def call(stream: Tensor, *args: Any, **kwargs: Any) -> Any:
                if layer == 0:
                    passage.stream = self._spill.kept(stream)
                passage.calls.append((args, kwargs))
                return self._as_output(stream)

            return call

        passage.calls.clear()
        with self._instead(noting):
            self._blocks.module.base_model(**passage.inputs())

    def through(self, layer: int, passage: RunningBatch) -> None:
        """Move a micro-batch's stream through one block, whose weights must be loaded."""
        args, kwargs = passage.calls[layer]
        out = self._blocks.block(layer)(passage.stream.to(self._blocks.device), *args, **kwargs)
        passage.stream = self._spill.instead(passage.stream, out[0] if isinstance(out, tuple) else out)

    def leave(self, passage: RunningBatch, kept: int) -> Float[Tensor, "row kept vocab"]:
        """Logits (float32) of a stream that has passed all blocks, by the model's own final norm and head."""

        def passing(layer: int) -> Callable[..., Any]:
            def call(stream: Tensor, *args: Any, **kwargs: Any) -> Any:
                return self._as_output(passage.stream.to(stream) if layer == self._layers - 1 else stream)

            return call

        asked = {"input_ids": passage.batch.input_ids, "position_ids": passage.batch.position_ids}
        with self._instead(passing):
            out = self._blocks.module(**asked, use_cache=False, logits_to_keep=kept)
        logits: Tensor = out.logits
        return logits.float()

    def _as_output(self, stream: Tensor) -> Any:
        """A stream in the form that this architecture's blocks return."""
        return (stream, *[None] * (self._arity - 1)) if self._arity else stream

    @contextmanager
    def _instead(self, make: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
        """Replace each block's forward with the function that ``make`` returns for it."""
        with ExitStack() as stack:
            for layer in range(self._layers):
                block = self._blocks.block(layer)
                block.forward = make(layer)
                stack.callback(block.__dict__.pop, "forward", None)
            yield


def arity(folder: ModelFolder) -> int:
    """How many things an architecture's blocks return in a tuple, 0 for the stream alone; found on a small copy."""
    model = tiny_model(tiny_config(folder.config, min(2, folder.layers)), folder.trust_remote_code)
    seen: list[int] = []
    handle = (
        InMemory(folder, model)
        .block(0)
        .register_forward_hook(lambda module, args, output: seen.append(len(output) if isinstance(output, tuple) else 0))
    )
    with tried(folder.config), torch.no_grad():
        model(input_ids=probe(), use_cache=False)
    handle.remove()
    return seen[0]
