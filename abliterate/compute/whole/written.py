"""What writers add to the residual stream, token by token, with a score's gradients, to estimate what removing a direction would do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.compute.hooks import HookPoint, entered_by, entering, hooked, left_by, places
from abliterate.compute.load import InMemory

Tokens = Float[Tensor, "token d_model"]


@dataclass
class _Heard:
    """What was written at a hook point in one pass, and the gradient there."""

    place: HookPoint
    wrote: Tensor
    gradient: Tensor | None = None

    def take(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach()


class Written:
    """What writers of some blocks wrote in every forward pass since ``forget``.

    If norms are between a writer and the stream, what it wrote is multiplied by their ``gamma`` and the gradient divided by it: removing
    a direction as ``model.removal`` does then applies to both as it does for writers without norms.
    """

    def __init__(self) -> None:
        self._heard: dict[int, list[_Heard]] = {}

    def hear(self, layer: int, place: HookPoint, wrote: Tensor) -> None:
        """Record what was written at a hook point, and its gradient once there is one."""
        if wrote.requires_grad:
            heard = _Heard(place, wrote.detach().clone())  # some blocks add to it in place
            wrote.register_hook(heard.take)  # type: ignore[no-untyped-call]
            self._heard.setdefault(layer, []).append(heard)

    def forget(self) -> None:
        """Drop all records and their graphs."""
        self._heard.clear()

    def of(self, layer: int) -> Iterator[tuple[Tokens, Tokens]]:
        """What each writer of the block wrote at each token, and the score's gradient there; call it after gradients were taken."""
        for heard in self._heard.get(layer, []):
            if heard.gradient is None:  # as in a prefix's last block, where only keys and values are used
                continue
            y, gradient = heard.wrote.flatten(0, -2).float(), heard.gradient.flatten(0, -2).float()
            if heard.place.gamma is not None:
                gamma = heard.place.gamma.to(y)
                y, gradient = y * gamma, torch.where(gamma == 0, 0.0, gradient / gamma)
            yield y, gradient


@contextmanager
def written(model: InMemory, layers: Sequence[int]) -> Iterator[Written]:
    """Record the writers of some blocks; gradients flow from the input of the first of these blocks."""
    found = Written()

    def begin(module: Any, args: Any, kwargs: Any) -> Any:
        return entered_by(args, kwargs, entering(args, kwargs).detach().requires_grad_())

    with ExitStack() as stack, torch.enable_grad():
        stack.callback(model.block(layers[0]).register_forward_pre_hook(begin, with_kwargs=True).remove)
        for layer in layers:
            for place in places(model, layer):
                stack.enter_context(hooked(place.module, *_hearing(found, layer, place)))
        yield found


def _hearing(found: Written, layer: int, place: HookPoint) -> tuple[Callable[..., None], bool]:
    """The hook that records what is written at a hook point, and whether it runs before the module."""
    if place.gamma is None:
        return lambda module, args, output: found.hear(layer, place, left_by(output)), False
    return lambda module, args: found.hear(layer, place, args[0]), True
