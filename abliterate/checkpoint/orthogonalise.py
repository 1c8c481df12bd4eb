"""The edit itself, as pure functions of tensors.

An edit removes what a writer W writes along k directions: W' = W - alpha w (q W), with d_model on one axis of W (model/removal.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.model.removal import Removal, removal

_CHUNK = 1 << 18  # elements in float32 at once; 1 MB stays in the CPU cache and needs no new memory pages


def panels(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """A tensor's shape as (outer, d_model, inner), where d_model is ``axis``."""
    outer = inner = 1
    for size in shape[:axis]:
        outer *= size
    for size in shape[axis + 1 :]:
        inner *= size
    return outer, shape[axis], inner


def _blocks(outer: int, width: int, inner: int) -> Iterator[tuple[slice, slice]]:
    """Contiguous pieces of [outer, width, inner] with at most ``_CHUNK`` elements, each within one outer index if inner > 1."""
    if inner == 1:
        step = max(1, _CHUNK // width)
        yield from ((slice(start, min(start + step, outer)), slice(0, width)) for start in range(0, outer, step))
        return
    step = max(1, _CHUNK // inner)
    for o in range(outer):
        yield from ((slice(o, o + 1), slice(start, min(start + step, width))) for start in range(0, width, step))


@dataclass
class Readings:
    """The results of one pass over a tensor: its component along q per column (float64 sums of float32 products), and norms.

    ``columns``: each column's squared length, ``lean``: its product with w; both only if requested.
    """

    component: Float[Tensor, "outer k inner"]
    squares: float
    finite: bool
    columns: Float[Tensor, "outer inner"] | None = None
    lean: Float[Tensor, "outer k inner"] | None = None

    @property
    def along(self) -> float:
        """The Frobenius norm of q W."""
        return float(self.component.norm())

    @property
    def size(self) -> float:
        """The Frobenius norm of W, or of D W if a norm follows the writer."""
        return float(self.squares**0.5)

    def restoring(self, task: Removal, strength: float) -> Float[Tensor, "outer inner"]:
        """Old length over new length of each column; 1 if nothing of the column is left."""
        assert self.columns is not None and self.lean is not None
        taken = strength * self.component
        gram = task.w.T @ task.w
        change = (gram @ taken * taken).sum(1) - 2 * (self.lean * taken).sum(1)
        new = (self.columns + change).clamp(min=0)
        kept = new > 1e-12 * self.columns
        return torch.where(kept, (self.columns / torch.where(kept, new, 1.0)).sqrt(), 1.0)


def read_component(weight: Tensor, task: Removal, axis: int, columns: bool = False) -> Readings:
    """One pass over ``weight`` (any float dtype), one block at a time in float32 (float64 with ``columns``)."""
    outer, width, inner = panels(tuple(weight.shape), axis)
    view = weight.view(outer, width, inner)
    k = task.q.shape[0]
    wide = torch.float64 if columns or weight.dtype == torch.float64 else torch.float32
    component = torch.zeros(outer, k, inner, dtype=torch.float64)
    lean = torch.zeros_like(component) if columns else None
    squared = torch.zeros(outer, inner, dtype=torch.float64) if columns else None
    q, w, squares, finite = task.q.to(wide), task.w.to(wide), 0.0, True
    for o, rows in _blocks(outer, width, inner):
        block = view[o, rows].to(wide)
        scaled = block if task.scale is None else block * task.scale[rows].to(wide)[:, None]
        length = float(torch.linalg.vector_norm(scaled))
        part = length * length  # ``length**2`` would raise OverflowError on overflow
        finite &= part < float("inf")
        squares += part
        component[o] += _times(q[:, rows], block)
        if columns and lean is not None and squared is not None:
            lean[o] += _times(w.T[:, rows], block)
            squared[o] += block.double().square().sum(1)
    return Readings(component, squares, finite, squared, lean)


def _times(rows: Tensor, block: Tensor) -> Tensor:
    """rows [k, d] times block [o, d, i] as [o, k, i]."""
    if block.shape[2] == 1:
        return (block[:, :, 0] @ rows.T)[:, :, None]
    return rows @ block


def remove(weight: Tensor, task: Removal, strength: float, axis: int, found: Readings) -> None:
    """Remove ``strength`` times the component from ``weight`` in place, one block at a time in float32, each rounded once.

    With ``found.columns`` each column (the vector that one input writes) gets its old length back. At strength 1 this adds nothing along
    the directions. It is computed in float64, because rescaling a column also scales the rounding error along the directions.
    """
    outer, width, inner = panels(tuple(weight.shape), axis)
    view = weight.view(outer, width, inner)
    wide = torch.float64 if found.columns is not None or weight.dtype == torch.float64 else torch.float32
    w = task.w.to(wide)
    taken = (strength * found.component).to(wide)
    factor = None if found.columns is None else found.restoring(task, strength).to(wide)
    for o, rows in _blocks(outer, width, inner):
        block = view[o, rows].to(wide)
        if inner == 1:
            block[:, :, 0] -= taken[o, :, 0] @ w[rows].T
        else:
            block -= w[rows] @ taken[o]
        if factor is not None:
            block *= factor[o][:, None, :]
        view[o, rows] = block.to(weight.dtype)


def orthogonalise(
    weight: Tensor, rows: Float[Tensor, "k d_model"], strength: float, axis: int, gamma: Tensor | None = None, columns: bool = False
) -> Tensor:
    """``weight`` without ``strength`` of its component along ``rows``, computed and returned in float32 (float64 stays float64)."""
    wide = weight.to(torch.float64 if weight.dtype == torch.float64 else torch.float32, copy=True).contiguous()
    task = removal(rows, gamma)
    remove(wide, task, strength, axis, read_component(wide, task, axis, columns))
    return wide


def component_along(weight: Tensor, rows: Float[Tensor, "k d_model"], axis: int) -> float:
    """The Frobenius norm of R W, the part of a writer along the directions."""
    return read_component(weight.contiguous(), removal(rows), axis).along
