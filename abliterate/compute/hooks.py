"""Hooks that watch or change the residual stream at run time; every context removes its hooks, even after an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from abliterate.compute.load import InMemory
from abliterate.compute.passes import Intervention
from abliterate.errors import InputError
from abliterate.model.edit import Edit
from abliterate.model.layouts import COMPONENTS, Component, Writer
from abliterate.model.removal import Removal, removal
from abliterate.model.tensor_names import in_memory


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any], before: bool = False) -> Iterator[None]:
    """Run a hook after a module's forward pass, or ``before`` it."""
    handle = module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def left_by(output: Any) -> Tensor:
    """The stream that a block returns, in some families as the first element of a tuple."""
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def entering(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The stream that a block is called with."""
    stream: Tensor = args[0] if args else kwargs["hidden_states"]
    return stream


def entered_by(args: tuple[Any, ...], kwargs: dict[str, Any], stream: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A block's arguments with its stream replaced."""
    return ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})


@contextmanager
def computing(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a block compute ``forward`` instead of its own forward."""
    before = block.__dict__.get("forward")  # set if the model is spread over GPUs
    block.__dict__["forward"] = forward
    try:
        yield
    finally:
        block.__dict__.pop("forward")
        if before is not None:
            block.__dict__["forward"] = before


def as_one(stream: Float[Tensor, "row position *streams d_model"]) -> Float[Tensor, "row position d_model"]:
    """The residual stream; if a family has several side by side (DeepSeek V4), their mean."""
    return stream if stream.ndim == 3 else stream.flatten(2, -2).mean(2)


def without(y: Float[Tensor, "*n d_model"], rows: Float[Tensor, "k d_model"], strength: float) -> Float[Tensor, "*n d_model"]:
    """y - alpha (y R^T) R: what the edited writer would have written instead of y."""
    return y - strength * ((y @ rows.T) @ rows)


@contextmanager
def ablated(model: InMemory, edit: Edit) -> Iterator[None]:
    """Let the model compute what its edited checkpoint would, up to rounding: the directions are removed from each writer's own output,
    before any norm between the writer and the stream. Gradients flow to the edit's directions and strengths.

    The embedding follows the edit's policy; if it is tied, editing it changes the unembedding too.
    """
    with changed(model, Intervention(edit)):
        yield


@contextmanager
def added(model: InMemory, layer: int, vector: Float[Tensor, " d_model"]) -> Iterator[None]:
    """Add a vector to the residual stream after block ``layer``, at every position (activation addition)."""
    with changed(model, Intervention(shift=vector, shift_layer=layer)):
        yield


@contextmanager
def changed(model: InMemory, intervention: Intervention) -> Iterator[None]:
    """Put the whole model under an intervention."""
    with ExitStack() as stack:
        for layer in range(max(model.folder.layers, intervention.edit.layers if intervention.edit is not None else 0)):
            stack.enter_context(changed_block(model, intervention, layer))
        stack.enter_context(changed_embedding(model, intervention))
        stack.enter_context(changed_head(model, intervention))
        yield


@contextmanager
def changed_block(model: InMemory, intervention: Intervention, layer: int) -> Iterator[None]:
    """Put one block under an intervention: its writers, and the vector that is added after it."""
    with ExitStack() as stack:
        if intervention.edit is not None:
            for place in places(model, layer):
                strength = intervention.edit.strength[layer, place.component]
                if float(strength.detach()):
                    taken = removal(intervention.edit.direction[layer, place.component], place.gamma)
                    stack.enter_context(hooked(place.module, *place.hook(taken, strength)))
        if intervention.shift is not None and layer == intervention.shift_layer:
            stack.enter_context(hooked(model.block(layer), _adding(model, intervention.shift)))
        yield


@contextmanager
def changed_embedding(model: InMemory, intervention: Intervention) -> Iterator[None]:
    """Put the embeddings under an intervention, by the edit's policy for embeddings."""
    rows = intervention.edit.embedding_direction() if intervention.edit is not None else None
    with ExitStack() as stack:
        if intervention.edit is not None and rows is not None:
            for embedding in (model.folder.layout.embedding_module, model.folder.layout.positions_module):
                if embedding:
                    hook = _removing(model, rows, intervention.edit.embedding_strength)
                    stack.enter_context(hooked(model.part(embedding), hook))
        yield


@contextmanager
def changed_head(model: InMemory, intervention: Intervention) -> Iterator[None]:
    """Put the unembedding under an intervention: it loses the direction if it is the edited embedding itself."""
    edit = intervention.edit
    rows = edit.embedding_direction() if edit is not None else None
    if edit is None or rows is None or not model.folder.tied or edit.embedding != "edit":
        yield
        return
    lost, strength = rows.to(model.device, model.module.dtype), edit.embedding_strength
    head: nn.Module = model.module.get_output_embeddings()  # type: ignore[no-untyped-call]
    with hooked(head, lambda module, args: (without(args[0], lost.to(args[0]), strength), *args[1:]), before=True):
        yield


def _removing(model: InMemory, rows: Tensor, strength: float) -> Callable[..., Any]:
    """A hook that removes the directions from an embedding's output."""
    lost = rows.to(model.device, model.module.dtype)
    return lambda module, args, output: without(output, lost.to(output), strength)


def _adding(model: InMemory, vector: Tensor) -> Callable[..., Any]:
    """A hook that adds a vector to a block's output."""
    shift = vector.to(model.device, model.module.dtype)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        moved = left_by(output) + shift.to(left_by(output))
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return hook


@dataclass(frozen=True)
class HookPoint:
    """Where the output of writers of a ``component`` (its number) can be changed: the output of ``module`` or, if norms with the product
    ``gamma`` are between the writers and the stream, the input of the first norm."""

    module: nn.Module
    component: int
    gamma: Float[Tensor, " d_model"] | None

    def hook(self, taken: Removal, strength: Tensor) -> tuple[Callable[..., Any], bool]:
        """A hook that removes the directions here with this ``strength``, and whether it runs before the module."""

        def edited(y: Tensor) -> Tensor:
            return y - strength.to(y) * ((y @ taken.q.T.to(y)) @ taken.w.T.to(y))  # a block may be on another device

        def behind(module: nn.Module, args: Any, output: Any) -> Any:
            return (edited(output[0]), *output[1:]) if isinstance(output, tuple) else edited(output)

        def before(module: nn.Module, args: Any) -> Any:
            return edited(args[0]), *args[1:]

        return (behind, False) if self.gamma is None else (before, True)


def places(model: InMemory, layer: int) -> list[HookPoint]:
    """The hook points of a block's writers. Raises InputError if the model has none of them."""
    model.block(layer)
    found = model.folder.layout.written_by(layer, model.parts)
    if not found:
        raise InputError(f"{model.folder.path}: block {layer} has no module that its layout {model.folder.layout.name!r} calls a writer")
    block = in_memory(model.folder.layout.block_module.format(layer), model.parts)
    return [place for name, component in found.items() for place in _places(model, block, name, component)]


def _places(model: InMemory, block: str, name: str, component: Component) -> list[HookPoint]:
    """The hook points of module ``name``: one for each chain of norms through which its writers reach the stream."""
    writers = [w for w in model.folder.layout.writers if w.norms and f"{block}.{w.module}" == name]
    chains = [(norms, writer.offset) for writer in writers if (norms := _norms(model, block, writer))]
    if not chains:
        return [HookPoint(model.parts[name], COMPONENTS.index(component), None)]
    by_first = {id(norms[0]): (norms, offset) for norms, offset in reversed(chains)}
    return [HookPoint(norms[0], COMPONENTS.index(component), _gamma(norms, offset)) for norms, offset in by_first.values()]


def _gamma(norms: Sequence[nn.Module], offset: float) -> Float[Tensor, " d_model"]:
    """The product of the weights of consecutive norms."""
    gamma = torch.ones((), dtype=torch.float64)
    for norm in norms:
        weight: Any = norm.weight
        gamma = gamma * (weight.detach().to("cpu", torch.float64) + offset)
    return gamma


def _norms(model: InMemory, block: str, writer: Writer) -> list[nn.Module]:
    """The norms between a writer and the stream that a block has, from the inside out; in memory they may be nested deeper than on disk."""
    inside = {name.rpartition(".")[2]: part for name, part in model.parts.items() if name.startswith(f"{block}.")}
    ends = [norm.rpartition(".")[2] for norm in writer.norms]
    return [inside[end] for end in ends if end in inside]


@contextmanager
def captured(model: InMemory, last: int) -> Iterator[dict[int, Float[Tensor, "row position d_model"]]]:
    """Capture the residual stream of each forward pass at the last ``last`` positions, by activation index.

    Index 0 is the stream that enters the first block, l + 1 the stream after block l and before the final norm. The last
    position comes last.
    """
    seen: dict[int, Tensor] = {}

    def keep(index: int, stream: Tensor) -> None:
        seen[index] = as_one(stream)[:, -last:].detach().to(torch.float32)

    def first_entered(module: nn.Module, args: Any, kwargs: Any) -> None:
        keep(0, entering(args, kwargs))

    def leaving(index: int) -> Callable[..., None]:
        return lambda module, args, output: keep(index, left_by(output))

    with ExitStack() as stack:
        first = model.block(0).register_forward_pre_hook(first_entered, with_kwargs=True)
        stack.callback(first.remove)
        for layer in range(model.folder.layers):
            stack.enter_context(hooked(model.block(layer), leaving(layer + 1)))
        yield seen


@contextmanager
def cleared(model: InMemory, rows: Float[Tensor, "k d_model"]) -> Iterator[None]:
    """Remove the directions from what enters the first block, so that what lies along them later was written by blocks."""

    def clear(module: nn.Module, args: Any, kwargs: Any) -> Any:
        stream = entering(args, kwargs)
        return entered_by(args, kwargs, without(stream, rows.to(stream.dtype), 1.0))

    handle = model.block(0).register_forward_pre_hook(clear, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
