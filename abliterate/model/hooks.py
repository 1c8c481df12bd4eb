"""Hooks that watch or change the residual stream at run time; every context removes its hooks, whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from abliterate.errors import InputError
from abliterate.model.layouts import COMPONENTS, Component
from abliterate.model.load import InMemory
from abliterate.model.passes import Change
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


def as_one(stream: Float[Tensor, "row position *streams d_model"]) -> Float[Tensor, "row position d_model"]:
    """The residual stream; where a family has several side by side (DeepSeek V4), their mean."""
    return stream if stream.ndim == 3 else stream.flatten(2, -2).mean(2)


def without(y: Float[Tensor, "*n d_model"], rows: Float[Tensor, "k d_model"], strength: float) -> Float[Tensor, "*n d_model"]:
    """y - alpha (y R^T) R: what the edited writer would have written instead of y."""
    return y - strength * ((y @ rows.T) @ rows)


@contextmanager
def ablated(model: InMemory, plan: EditPlan) -> Iterator[None]:
    """The model computes what its edited checkpoint would, up to rounding: what each block writes loses the directions.

    The embedding follows the plan's policy; where it is tied, editing it changes the unembedding too. Behind a post-norm the
    norm's output loses them, so there the checkpoint differs by the norm's scale.
    """
    with changed(model, Change(plan)):
        yield


@contextmanager
def added(model: InMemory, layer: int, vector: Float[Tensor, " d_model"]) -> Iterator[None]:
    """Add a vector to the residual stream after block ``layer``, at every position (activation addition)."""
    with changed(model, Change(shift=vector, shift_layer=layer)):
        yield


@contextmanager
def changed(model: InMemory, change: Change) -> Iterator[None]:
    """The whole model under a change."""
    with ExitStack() as stack:
        for layer in range(max(model.folder.layers, change.plan.layers if change.plan is not None else 0)):
            stack.enter_context(changed_block(model, change, layer))
        stack.enter_context(changed_embedding(model, change))
        stack.enter_context(changed_head(model, change))
        yield


@contextmanager
def changed_block(model: InMemory, change: Change, layer: int) -> Iterator[None]:
    """One block under a change: its writers, and what is added after it."""
    with ExitStack() as stack:
        if change.plan is not None:
            for name, component in _writing(model, layer).items():
                strength = float(change.plan.strength[layer, COMPONENTS.index(component)])
                if strength:
                    rows = change.plan.direction[layer, COMPONENTS.index(component)]
                    stack.enter_context(_hooked(model.parts[name], _removing(model, rows, strength)))
        if change.shift is not None and layer == change.shift_layer:
            stack.enter_context(_hooked(model.block(layer), _adding(model, change.shift)))
        yield


@contextmanager
def changed_embedding(model: InMemory, change: Change) -> Iterator[None]:
    """What enters the first block under a change: by the plan's policy for embeddings."""
    rows = change.plan.embedding_direction() if change.plan is not None else None
    with ExitStack() as stack:
        if change.plan is not None and rows is not None:
            for embedding in (model.folder.layout.embedding_module, model.folder.layout.positions_module):
                if embedding:
                    hook = _removing(model, rows, change.plan.embedding_strength)
                    stack.enter_context(_hooked(model.part(embedding), hook))
        yield


@contextmanager
def changed_head(model: InMemory, change: Change) -> Iterator[None]:
    """The unembedding under a change: it loses the direction where it is the edited embedding itself."""
    plan = change.plan
    rows = plan.embedding_direction() if plan is not None else None
    if plan is None or rows is None or not model.folder.tied or plan.embedding != "edit":
        yield
        return
    lost, strength = rows.to(model.device, model.module.dtype), plan.embedding_strength
    head: nn.Module = model.module.get_output_embeddings()  # type: ignore[no-untyped-call]
    with _hooked(head, lambda module, args: (without(args[0], lost.to(args[0]), strength), *args[1:]), before=True):
        yield


def _removing(model: InMemory, rows: Tensor, strength: float) -> Callable[..., Any]:
    """A hook that takes the directions out of a module's output."""
    lost = rows.to(model.device, model.module.dtype)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        edited = without(_stream(output), lost.to(_stream(output)), strength)  # a block may be on another device
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    return hook


def _adding(model: InMemory, vector: Tensor) -> Callable[..., Any]:
    """A hook that adds a vector to a block's output."""
    shift = vector.to(model.device, model.module.dtype)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        moved = _stream(output) + shift.to(_stream(output))
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return hook


def _writing(model: InMemory, layer: int) -> dict[str, Component]:
    """The modules that a block's writers write through. Raises InputError where the model has none of them."""
    model.block(layer)
    found = model.folder.layout.written_by(layer, model.parts)
    if not found:
        raise InputError(f"{model.folder.path}: block {layer} has no module that its layout {model.folder.layout.name!r} calls a writer")
    return found


@contextmanager
def captured(model: InMemory, last: int) -> Iterator[dict[int, Float[Tensor, "row position d_model"]]]:
    """The residual stream of each forward pass at the last ``last`` positions, by activation index.

    Index 0 is the stream that enters the first block, l + 1 the stream after block l and before the final norm. The last
    position comes last.
    """
    seen: dict[int, Tensor] = {}

    def keep(index: int, stream: Tensor) -> None:
        seen[index] = as_one(stream)[:, -last:].detach().to(torch.float32)

    def entering(module: nn.Module, args: Any, kwargs: Any) -> None:
        keep(0, args[0] if args else kwargs["hidden_states"])

    def leaving(index: int) -> Callable[..., None]:
        return lambda module, args, output: keep(index, _stream(output))

    with ExitStack() as stack:
        first = model.block(0).register_forward_pre_hook(entering, with_kwargs=True)
        stack.callback(first.remove)
        for layer in range(model.folder.layers):
            stack.enter_context(_hooked(model.block(layer), leaving(layer + 1)))
        yield seen


@contextmanager
def cleared(model: InMemory, rows: Float[Tensor, "k d_model"]) -> Iterator[None]:
    """Nothing of the directions enters the first block, so that what lies along them later was written by blocks."""

    def clear(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (without(args[0], rows.to(args[0].dtype), 1.0), *args[1:]), kwargs
        stream = kwargs["hidden_states"]
        return args, {**kwargs, "hidden_states": without(stream, rows.to(stream.dtype), 1.0)}

    handle = model.block(0).register_forward_pre_hook(clear, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
