"""Hooks that watch or change the residual stream at run time; every context removes its hooks, whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from abliterate.model.layouts import COMPONENTS
from abliterate.model.load import LocalModel
from abliterate.model.plan import EditPlan


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Any], before: bool = False) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _stream(output: Any) -> Tensor:
    """A block's output tensor; some blocks return it as the first of a tuple."""
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def without(y: Float[Tensor, "*n d_model"], rows: Float[Tensor, "k d_model"], strength: float) -> Float[Tensor, "*n d_model"]:
    """y - alpha (y R^T) R: what the edited writer would have written instead of y."""
    return y - strength * ((y @ rows.T) @ rows)


@contextmanager
def ablated(model: LocalModel, plan: EditPlan) -> Iterator[None]:
    """The model computes what its edited checkpoint would, up to rounding: each writer's own output loses the directions.

    The embedding follows the plan's policy; where it is tied, editing it changes the unembedding too.
    """
    layout = model.folder.layout
    dtype = model.module.dtype

    def remove(rows: Tensor, strength: float) -> Callable[..., Tensor]:
        return lambda module, args, output: without(output, rows, strength)

    with ExitStack() as stack:
        for layer in range(plan.layers):
            for writer in layout.writers:
                component = COMPONENTS.index(writer.component)
                strength = float(plan.strength[layer, component])
                if strength:
                    rows = plan.direction[layer, component].to(model.device, dtype)
                    module = model.module.get_submodule(writer.module(layer))
                    stack.enter_context(_hooked(module, remove(rows, strength)))
        shared = plan.embedding_direction()
        if shared is not None:
            rows = shared.to(model.device, dtype)
            embedding = model.module.get_submodule(layout.embedding_module)
            stack.enter_context(_hooked(embedding, remove(rows, plan.embedding_strength)))
            if model.folder.tied:
                head = model.module.get_submodule(layout.unembedding.removesuffix(".weight"))
                stack.enter_context(
                    _hooked(head, lambda module, args: (without(args[0], rows, plan.embedding_strength), *args[1:]), before=True)
                )
        yield


@contextmanager
def added(model: LocalModel, layer: int, vector: Float[Tensor, " d_model"]) -> Iterator[None]:
    """Add a vector to the residual stream after block ``layer``, at every position (activation addition)."""
    shift = vector.to(model.device, model.module.dtype)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift

    block = model.module.get_submodule(model.folder.layout.block.format(layer=layer))
    with _hooked(block, hook):
        yield


@contextmanager
def captured(model: LocalModel, last: int) -> Iterator[dict[int, Float[Tensor, "row position d_model"]]]:
    """The residual stream of each forward pass at the last ``last`` positions, by activation index.

    Index 0 is the embedding output, l + 1 the stream after block l and before the final norm. The last position comes last.
    """
    layout = model.folder.layout
    seen: dict[int, Tensor] = {}

    def keep(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[index] = _stream(output)[:, -last:].detach().to(torch.float32)

        return hook

    with ExitStack() as stack:
        stack.enter_context(_hooked(model.module.get_submodule(layout.embedding_module), keep(0)))
        for layer in range(model.folder.layers):
            block = model.module.get_submodule(layout.block.format(layer=layer))
            stack.enter_context(_hooked(block, keep(layer + 1)))
        yield seen
