"""The optimisers: Adam for strengths, and for directions Adam on the unit sphere, whose steps are angles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.choice.tuning.parameters import Parameters

BETAS = (0.8, 0.95)  # short running means, because there are few steps
_TINY = 1e-12  # keeps divisions by a vanishing gradient finite; such a row does not move


class SphereAdam(torch.optim.Optimizer):
    """Riemannian Adam (Bécigneul and Ganea 2019, arXiv 1810.00760) on rows [..., d_model] of length one; ``lr`` is an angle in radians.

    A row moves along the great circle against the running mean of its tangent gradients. The angle is ``lr`` times the length of that mean
    over the root of the running mean of the squared gradient lengths: about ``lr`` if the gradients agree, less if they do not. Only
    lengths and inner products enter, so a step turns a row by the same angle in any orthonormal basis and at any width. Coordinate-wise
    Adam would turn it by ``lr`` times the root of d_model.
    """

    def __init__(self, rows: Tensor, lr: float, betas: tuple[float, float] = BETAS) -> None:
        super().__init__([rows], {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Turn every row that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for rows in group["params"]:
                if rows.grad is not None:
                    self._turn(rows, rows.grad, group["lr"], *group["betas"])

    def _turn(
        self, rows: Float[Tensor, "*n d_model"], gradient: Float[Tensor, "*n d_model"], angle: float, first: float, second: float
    ) -> None:
        state = self.state[rows]
        if not state:
            state |= {"step": torch.tensor(0.0), "mean": torch.zeros_like(rows), "square": torch.zeros_like(rows[..., :1])}
        state["step"] += 1
        tangent = _tangent(gradient, rows)
        mean = _tangent(state["mean"], rows)  # transport the old mean to the tangent space at the new row
        state["mean"] = mean.lerp_(tangent, 1 - first)
        state["square"].lerp_(tangent.square().sum(-1, keepdim=True), 1 - second)
        count = float(state["step"])
        scale = (1 - first**count) / (1 - second**count) ** 0.5
        step = state["mean"] / scale / state["square"].sqrt().clamp_min(_TINY)
        length = step.norm(dim=-1, keepdim=True)
        turned = rows * torch.cos(angle * length) - step / length.clamp_min(_TINY) * torch.sin(angle * length)
        rows.copy_(turned / turned.norm(dim=-1, keepdim=True))


def _tangent(vectors: Float[Tensor, "*n d_model"], rows: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
    """The part of the vectors that is orthogonal to the unit rows."""
    return vectors - (vectors * rows).sum(-1, keepdim=True) * rows


@dataclass(frozen=True)
class Optimiser:
    """The optimisers of the parameters: Adam for the strengths, and Adam on the sphere for the directions if they are learned."""

    each: tuple[torch.optim.Optimizer, ...]

    @classmethod
    def of(cls, parameters: Parameters, strength_rate: float, turn: float) -> Optimiser:
        """``strength_rate`` is the learning rate of the strengths, ``turn`` the angle of directions per step, in radians."""
        strengths = torch.optim.Adam([parameters.strength], lr=strength_rate, betas=BETAS)
        learned = parameters.vectors.requires_grad
        return cls((strengths, SphereAdam(parameters.vectors, turn)) if learned else (strengths,))

    def slow_down(self, times: int) -> None:
        """Set each rate to its initial value divided by ``times``."""
        for optimiser in self.each:
            for group in optimiser.param_groups:
                group.setdefault("initial_lr", group["lr"])
                group["lr"] = group["initial_lr"] / times

    def forget_gradients(self) -> None:
        for optimiser in self.each:
            optimiser.zero_grad()

    def step(self) -> None:
        for optimiser in self.each:
            optimiser.step()

    def moments(self) -> dict[str, Tensor]:
        """The optimiser state (running means and step counts), by optimiser and name."""
        return {
            f"{number}.{name}": tensor
            for number, optimiser in enumerate(self.each)
            for moments in optimiser.state_dict()["state"].values()
            for name, tensor in moments.items()
        }

    def restore(self, moments: dict[str, Tensor]) -> None:
        """Restore the state that ``moments`` returned."""
        for number, optimiser in enumerate(self.each):
            own: dict[str, Any] = {name.partition(".")[2]: tensor for name, tensor in moments.items() if name.startswith(f"{number}.")}
            optimiser.load_state_dict({"state": {0: own} if own else {}, "param_groups": optimiser.state_dict()["param_groups"]})
