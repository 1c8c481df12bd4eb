"""How a matrix changed: the singular values of the difference that exceed rounding, and their vectors.

The leading singular vectors come from a random sketch with power iterations (Halko, Martinsson & Tropp 2011, arXiv 0909.4061), which for a
low-rank difference is as exact as a full decomposition. The effect of rounding is bounded by the norm of a random matrix whose entries
vary by half a step of the stored dtype (Bandeira & van Handel 2016, arXiv 1408.6185).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LEADING = 8  # how many singular vectors are kept; also the highest rank that counts as low
KEPT = 32  # how many singular values of a large matrix are computed
_OVER = 8  # extra columns of the sketch
_POWERS = 2  # power iterations of the sketch
_ENERGY = 0.99  # the rank counts the singular values that hold this share of the squared norm, without rounding
_MEAN = 4.0  # the variance of a rounding error is capped at this multiple of the mean squared difference
_SAFETY = 1.1  # factor on the bound for a random matrix
_LED = 0.3  # least share of the first singular value for an edit along a direction whose lengths were restored
_BAND = 1 << 22  # elements processed at once


@dataclass(frozen=True)
class Noise:
    """What rounding may add to a difference: its squared norm (``energy``), and a bound on its largest singular value (``floor``)."""

    energy: float
    floor: float


@dataclass(frozen=True)
class Spectrum:
    """Leading singular values and vectors of a difference [m, n], its squared norm (``energy``), and the noise from rounding.

    ``whole``: ``values`` holds all singular values.
    """

    values: Float[Tensor, " found"]
    left: Float[Tensor, "m leading"]
    right: Float[Tensor, "n leading"]
    energy: float
    noise: Noise
    whole: bool

    @property
    def rank(self) -> int | None:
        """How many singular values hold 99 % of the squared norm, not counting rounding; None if more are needed than were computed."""
        count = int((self.values > self.noise.floor).sum())
        squares = self.values.square()
        total = max(float(squares[:count].sum()), self.energy - self.noise.energy)
        enough = (squares.cumsum(0) >= _ENERGY * total).nonzero()
        needed = int(enough[0]) + 1 if len(enough) else None
        if needed is None and count == len(self.values) and not self.whole:
            return None
        return count if needed is None else min(count, needed)

    @property
    def first_share(self) -> float:
        """The share of the squared norm in the first singular value."""
        return float(self.values[0]) ** 2 / self.energy if self.energy else 0.0


def difference(base: Float[Tensor, "m n"], derived: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """derived - base in float32 (float64 if either is float64), one band of rows at a time."""
    wide = torch.float64 if torch.float64 in (base.dtype, derived.dtype) else torch.float32
    made = torch.empty(base.shape, dtype=wide)
    for rows in _bands(base):
        torch.sub(derived[rows].to(wide), base[rows].to(wide), out=made[rows])
    return made


def _bands(matrix: Tensor) -> list[slice]:
    step = max(1, _BAND // max(1, matrix.shape[1]))
    return [slice(start, start + step) for start in range(0, matrix.shape[0], step)]


def squared_norm(matrix: Float[Tensor, "m n"]) -> float:
    """The squared Frobenius norm, summed in float64 over bands."""
    return sum(float(torch.linalg.vector_norm(matrix[rows].float())) ** 2 for rows in _bands(matrix))


def rounding_noise(derived: Float[Tensor, "m n"], bits: int, energy: float) -> Noise:
    """What rounding ``derived`` to a significand of ``bits`` bits adds to a difference of squared norm ``energy``.

    The error of an element is modelled as uniform within half a step to either side. Its variance is capped relative to the mean squared
    difference, because a change below half a step is not stored at all.
    """
    m, n = derived.shape
    most = _MEAN * energy / (m * n)
    across, down = torch.zeros(m, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for rows in _bands(derived):
        band = derived[rows].float()
        step = torch.exp2(torch.frexp(band).exponent.float() - bits - 1).masked_fill_(band == 0, 0)
        variance = step.square_().div_(3).clamp_(max=most)
        across[rows] = variance.sum(1).double()
        down += variance.sum(0).double()
    return Noise(float(across.sum()), _SAFETY * float(across.max().sqrt() + down.max().sqrt()))


def spectrum(delta: Float[Tensor, "m n"], noise: Noise) -> Spectrum:
    """Leading singular values and vectors: from a full decomposition of a small matrix, from a sketch of a large one."""
    width = KEPT + _OVER
    energy = squared_norm(delta)
    if min(delta.shape) <= 2 * width:
        u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
        return Spectrum(s, u[:, :LEADING].float(), vh[:LEADING].T.float(), energy, noise, True)
    u, s, vh = _sketched(delta, width)
    return Spectrum(s[:KEPT].double(), u[:, :LEADING].float(), vh[:LEADING].T.float(), energy, noise, False)


def _sketched(delta: Float[Tensor, "m n"], width: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    columns = torch.randn(delta.shape[1], width, generator=draw, dtype=delta.dtype)
    basis = torch.linalg.qr(delta @ columns).Q
    for _ in range(_POWERS):
        basis = torch.linalg.qr(delta @ torch.linalg.qr(delta.T @ basis).Q).Q
    u, s, vh = torch.linalg.svd(basis.T @ delta, full_matrices=False)
    return basis @ u, s, vh


def without_rescaling(base: Float[Tensor, "m n"], derived: Float[Tensor, "m n"], found: Spectrum, bits: int) -> tuple[Spectrum, str | None]:
    """Undo a rescaling: the spectrum of an edit before it gave each column (or row) its old length back.

    The scale of a column is estimated outside the edit's own directions. Returns the new spectrum and what was rescaled: ``columns`` (what
    one input writes) or ``rows``; or ``found`` and None, if undoing a rescaling does not give a low-rank difference.
    """
    rank = found.rank
    if (rank is not None and rank <= 1) or found.first_share < _LED:
        return found, None
    best: tuple[Spectrum, str | None] = (found, None)
    for what in ("columns", "rows"):
        undone = found
        for _ in range(2):
            undone = _undone(base, derived, undone, bits, what)
        low = undone.rank is not None and undone.rank <= LEADING and (rank is None or undone.rank < rank)
        if low and undone.first_share > best[0].first_share:
            best = undone, what
    return best


def _undone(base: Tensor, derived: Tensor, found: Spectrum, bits: int, what: str) -> Spectrum:
    """The spectrum of derived / s - base, where s per column or row makes both agree best outside the directions in ``found``."""
    columns = what == "columns"
    own = (found.left if columns else found.right)[:, : max(1, min(LEADING, min(base.shape) // 4))]
    old, new = (base, derived) if columns else (base.T, derived.T)
    inner, outer = torch.zeros(2, old.shape[1], dtype=torch.float64)
    for rows in _bands(old):
        a, b = old[rows].float(), new[rows].float()
        inner += (a * b).sum(0).double()
        outer += a.square().sum(0).double()
    a, b = (own.T @ side.float() for side in (old, new))
    inner -= (a * b).sum(0).double()
    outer -= a.square().sum(0).double()
    scale = torch.where((inner > 0) & (outer > 0), inner / outer, 1.0).float()
    delta = difference(base, derived / scale if columns else derived / scale[:, None])
    return spectrum(delta, rounding_noise(derived, bits, squared_norm(delta)))
