"""Rounding to a storage type with error feedback: the component along given directions survives although each element is rounded.

With rounding to nearest a small edit is lost: at d_model 7168 each change is below half a step of FP8, and about half of the removed
direction comes back. Here rows are rounded one after another, and each absorbs part of the error that the rows before it left along
the directions (error diffusion, Floyd and Steinberg 1976, with directions in place of neighbouring pixels).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from abliterate.errors import InputError

BAND = 256  # rows prepared at once: they fit in the CPU cache, and are small beside the tensor
DAMPING = 0.1  # the share of the carry that a row absorbs: elements then seldom move off the nearest value
LAST_ROWS = 512  # the last rows (at most an eighth of all) absorb the whole carry: they weigh least, so it ends smallest
NEGLIGIBLE = 1e-6  # of the mean squared weight: rows below it absorb nothing, since they would only chase float32 noise
_BITS = {1: torch.uint8, 2: torch.int16}


class Grid(NamedTuple):
    """For each code (the bits as an unsigned integer): its value and its two neighbours; at the ends, a neighbour is the value itself."""

    value: Float[Tensor, " codes"]
    below: Float[Tensor, " codes"]
    above: Float[Tensor, " codes"]


@cache
def grid(dtype: torch.dtype) -> Grid:
    """All values of a floating type of 8 or 16 bits. NaN and infinity are no neighbours of any value, so rounding never yields them."""
    size = dtype.itemsize
    value = torch.arange(256**size).to(_BITS[size]).view(dtype).float()
    finite = torch.tensor(sorted(set(value[value.isfinite()].tolist())))
    place = torch.searchsorted(finite, value.nan_to_num(0))
    return Grid(value, finite[(place - 1).clamp(min=0)], finite[(place + 1).clamp(max=len(finite) - 1)])


def round_nearest(wide: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """The nearest value of ``dtype``, saturating at the largest finite value, never infinity or NaN."""
    largest = torch.finfo(dtype).max
    return wide.clamp(-largest, largest).to(dtype)


def round_compensated(
    wide: Float[Tensor, "out columns"],
    left: Float[Tensor, "k out"],
    dtype: torch.dtype,
    units: Float[Tensor, "groups columns"] | None = None,
    group: int = 1,
) -> Float[Tensor, "out columns"]:
    """Round to ``dtype`` (8 or 16 bits) so that ``left`` @ rounded stays ``left`` @ wide, each element at most one step off the nearest.

    ``left`` holds the directions whose product must be kept, of any length and at any angle. If ``units`` is given, row i is stored as
    multiples of units[i // group], all positive: ``wide`` and the product are in true values, the result is in units. Zeros stay zero.
    Needs little memory besides the result. Raises InputError if ``wide`` holds NaN or infinity.
    """
    if not bool(wide.isfinite().all()):
        raise InputError("the edited tensor holds NaN or infinity, which can't be rounded; the checkpoint is damaged")
    if units is None:
        units, group = torch.ones(1, wide.shape[1]), max(1, wide.shape[0])
    basis = _orthonormal(left)
    order = basis.norm(dim=0).argsort(descending=True, stable=True)
    pull = _pull(basis, order)
    carry = torch.zeros(basis.shape[0], wide.shape[1])
    rounded = torch.empty(wide.shape, dtype=dtype)
    bits = rounded.view(_BITS[dtype.itemsize])
    for rows, back in zip(torch.split(order, BAND), torch.split(pull, BAND), strict=True):
        scale = units[rows // group].float()
        values = _round_band(wide[rows].float(), scale, dtype, basis[:, rows].T.contiguous(), back, carry)
        bits[rows] = round_nearest(values.div_(scale), dtype).view(bits.dtype)
    return rounded


def _orthonormal(left: Float[Tensor, "k out"]) -> Float[Tensor, "rank out"]:
    """Orthonormal rows with the span of ``left``, so that a long or repeated direction doesn't outweigh the others."""
    _, size, rows = torch.linalg.svd(left.double(), full_matrices=False)
    return rows[size > 1e-6 * size.max()].float() if size.numel() else left.float()


def _pull(basis: Float[Tensor, "k out"], order: Int[Tensor, " out"]) -> Float[Tensor, "out k"]:
    """For each place in ``order`` (heaviest rows first): pull @ carry is how far that row should move to absorb its share of the carry."""
    rows = basis[:, order].double()
    weight = rows.square().sum(0)
    useful = int((weight > NEGLIGIBLE * weight.mean()).sum())
    share = torch.zeros_like(weight)
    share[:useful] = DAMPING
    share[useful - min(LAST_ROWS, max(1, useful // 8)) : useful] = 1.0
    return (-rows * share / weight.clamp(min=1e-30)).T.float().contiguous()


def _round_band(
    exact: Float[Tensor, "rows columns"],
    scale: Float[Tensor, "rows columns"],
    dtype: torch.dtype,
    along: Float[Tensor, "rows k"],
    pull: Float[Tensor, "rows k"],
    carry: Float[Tensor, "k columns"],
) -> Float[Tensor, "rows columns"]:
    """Round rows one by one, in true values; ``carry``, the sum of along_i * error_i in each column, is updated in place."""
    codes = round_nearest(exact / scale, dtype).view(_BITS[dtype.itemsize])
    index = (codes.int() & (256**dtype.itemsize - 1)).flatten()
    near, low, high = (table[index].view_as(exact).mul_(scale) for table in grid(dtype))
    zero = exact == 0
    to_low = ((near + low) / 2).masked_fill_(zero, -torch.inf)
    to_high = ((near + high) / 2).masked_fill_(zero, torch.inf)
    aim, past = exact.new_empty(exact.shape[1]), zero.new_empty(exact.shape[1])
    # One row at a time in Python, so with few calls and preallocated buffers: about 20 microseconds per row.
    for value, target, down, up, below, above, weight, back in zip(
        *(t.unbind(0) for t in (near, exact, low, high, to_low, to_high, along, pull)), strict=True
    ):
        torch.addmv(target, carry.T, back, out=aim)
        torch.where(torch.gt(aim, above, out=past), up, value, out=value)
        torch.where(torch.lt(aim, below, out=past), down, value, out=value)
        carry.addr_(weight, torch.sub(value, target, out=aim))
    return near
