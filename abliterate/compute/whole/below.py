"""Below the first block that an edit changes, the residual stream is the unedited model's, so it is computed once for all edits and steps.

The stream that enters this block is kept for each sequence. A forward pass then starts from it, and the blocks before it do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from abliterate.compute.hooks import computing, entered_by, entering
from abliterate.compute.load import InMemory
from abliterate.compute.passes import Ids, Intervention
from abliterate.model.edit import Edit

Span = tuple[Sequence[int], int, int]  # a sequence, and a range of its tokens: from, to


@dataclass(frozen=True)
class Below:
    """The streams that enter block ``layer`` of the unedited model, by sequence; ``arity``: how many outputs a block returns, None if
    it returns the stream alone."""

    layer: int
    arity: int | None
    streams: Mapping[tuple[int, ...], Float[Tensor, "token d_model"]]

    def serves(self, intervention: Intervention, sequences: Ids) -> bool:
        """Whether the streams are also valid under an intervention, and are there for all sequences."""
        return self.layer <= first_changed(intervention) and all(tuple(ids) in self.streams for ids in sequences)

    def rows(self, spans: Sequence[Span], width: int) -> Float[Tensor, "row width d_model"]:
        """The streams of spans of sequences, padded on the left like a batch."""
        found = [self.streams[tuple(ids)][start:stop] for ids, start, stop in spans]
        made = found[0].new_zeros(len(found), width, found[0].shape[-1])
        for row, stream in zip(made, found, strict=True):
            row[width - len(stream) :] = stream
        return made

    @contextmanager
    def entering(self, model: InMemory, stream: Float[Tensor, "row width d_model"]) -> Iterator[None]:
        """Let a forward pass start from the stream at the block; its arguments must still describe the same tokens."""
        with ExitStack() as stack:
            for layer in range(self.layer):
                stack.enter_context(computing(model.block(layer), _nothing(self.arity)))
            handle = model.block(self.layer).register_forward_pre_hook(
                lambda _, args, kwargs: entered_by(args, kwargs, stream.to(entering(args, kwargs))), with_kwargs=True
            )
            stack.callback(handle.remove)
            yield


def first_changed(intervention: Intervention) -> int | float:
    """The first block whose output an intervention changes; infinity if it changes nothing."""
    first = float("inf") if intervention.shift is None else intervention.shift_layer
    if intervention.edit is None:
        return first
    if intervention.edit.embedding_direction() is not None:
        return 0
    edited = intervention.edit.strength.detach().any(-1).nonzero()
    return min(first, int(edited[0])) if len(edited) else first


def first_edited(edits: Iterable[Edit]) -> int | float:
    """The first block that any of the edits changes."""
    return min(first_changed(Intervention(edit)) for edit in edits)


class _EnoughError(Exception):
    """The stream has been captured; the rest of the pass isn't needed."""


@contextmanager
def watching(model: InMemory, layer: int, seen: Callable[[Tensor, int | None], None]) -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Yield a function that runs a forward pass up to block ``layer`` and calls ``seen`` with the stream that enters it and the arity."""
    arity: list[int | None] = []

    def left(module: nn.Module, args: Any, output: Any) -> None:
        arity[:] = [len(output) if isinstance(output, tuple) else None]

    def entered(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen(entering(args, kwargs), arity[0])
        raise _EnoughError

    def run(forward: Callable[[], Any]) -> None:
        try:
            forward()
        except _EnoughError:
            return
        raise AssertionError("the block was not entered")

    with ExitStack() as stack:
        stack.callback(model.block(layer - 1).register_forward_hook(left).remove)
        stack.callback(model.block(layer).register_forward_pre_hook(entered, with_kwargs=True).remove)
        yield run


def _nothing(arity: int | None) -> Callable[..., Any]:
    """A block's forward that returns the stream unchanged."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        stream = entering(args, kwargs)
        return stream if arity is None else (stream, *[None] * (arity - 1))

    return forward


def distinct(sequences: Sequence[Sequence[int]]) -> list[list[int]]:
    """Each sequence once, in order of first occurrence."""
    return [list(ids) for ids in dict.fromkeys(map(tuple, sequences))]
