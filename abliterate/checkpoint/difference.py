"""Compare the weights of two checkpoints, tensor by tensor, in memory for a few tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from abliterate.checkpoint.records import Reshaped, TensorRow, Weights, WeightsFile
from abliterate.checkpoint.spectrum import LEADING, difference, rounding_noise, spectrum, squared_norm, without_rescaling
from abliterate.checkpoint.tasks import Gammas, placed_writers, shared_writers, writer_axis
from abliterate.errors import InputError
from abliterate.model.folder import ModelFolder
from abliterate.model.formats.plain import PLAIN
from abliterate.model.index import ShardIndex, TensorInfo, first_difference, open_index, reading
from abliterate.model.stored import Stored, stored
from abliterate.model.tensor_names import text_name


@dataclass(frozen=True)
class TensorRole:
    """A tensor's kind and, if it is a writer, its block, the axis of d_model, and the scale (``gamma``) of the norms after it."""

    kind: str
    layer: int | None = None
    axis: int | None = None
    gamma: Float[Tensor, " d_model"] | None = None


@dataclass(frozen=True)
class TensorChange:
    """One matrix (one expert of fused experts) or vector that differs.

    ``relative``: the norm of the difference over the norm of the base. ``rank``: None if it exceeds the number of computed singular values,
    or if this is not a matrix. For a writer's matrix, ``directions`` are the directions along which its output differs, as they enter the
    stream, the leading one first. Along the leading one, ``left`` is ‖r W'‖ / ‖r W‖ and ``strength`` the share of r W that is removed
    (negative: added). ``own``: the |cos| between the component of the difference and r W, averaged over the directions by energy; 1 if the
    edit only scales what the matrix wrote there. ``pair``: a writer's bias before and after, as it enters the stream.
    """

    name: str
    kind: str
    layer: int | None
    shape: tuple[int, ...]
    dtype: str
    writer: bool
    relative: float | None
    rank: int | None = None
    values: tuple[float, ...] = ()
    first_share: float | None = None
    floor: float | None = None
    rescaled: str | None = None
    left: float | None = None
    strength: float | None = None
    own: float | None = None
    through_norm: bool | None = None
    directions: Float[Tensor, "k d_model"] | None = None
    pair: Float[Tensor, "2 d_model"] | None = None

    def row(self) -> TensorRow:
        """The row of weights.json."""
        hidden = ("directions", "pair")
        return TensorRow(**{key: value for key, value in vars(self).items() if key not in hidden})


@dataclass
class Difference:
    """All differences. ``changed`` and ``same`` count tensors by kind; ``recast``: tensors with the same values in another dtype."""

    changes: list[TensorChange] = field(default_factory=list)
    changed: Counter[str] = field(default_factory=Counter)
    same: Counter[str] = field(default_factory=Counter)
    recast: list[str] = field(default_factory=list)
    only_base: list[str] = field(default_factory=list)
    only_derived: list[str] = field(default_factory=list)
    reshaped: list[Reshaped] = field(default_factory=list)
    layers: int = 0

    def table(self, summary: Weights) -> WeightsFile:
        """The content of weights.json: all differences, one row per changed tensor, with a summary."""
        return WeightsFile(
            summary=summary,
            recast=tuple(self.recast),
            only_base=tuple(self.only_base),
            only_derived=tuple(self.only_derived),
            reshaped=tuple(self.reshaped),
            tensors=tuple(change.row() for change in self.changes),
        )


def work_of_difference(base: ModelFolder) -> int:
    """The bytes that ``differences`` reports to ``advance``."""
    return sum(one.nbytes for one in _by_name(open_index(base.path), base).values())


def differences(base: ModelFolder, derived: ModelFolder, advance: Callable[[int], None] = lambda done: None) -> Difference:
    """Compare every tensor of two checkpoints of one architecture. ``advance`` counts bytes of the base.

    Tensors are matched by name, regardless of their shard. Raises InputError if a tensor can't be read, or holds NaN or infinity.
    """
    old_index, new_index = open_index(base.path), open_index(derived.path)
    old, new = _by_name(old_index, base), _by_name(new_index, derived)
    places = _places(old_index, base)
    found = Difference(layers=base.layers)
    found.only_base = sorted(old[name].plain_name for name in old.keys() - new.keys())
    found.only_derived = sorted(new[name].plain_name for name in new.keys() - old.keys())
    for name, before in old.items():
        if name in new:
            _compare(before, new[name], places.get(before.plain_name) or _other(before, base), found)
        advance(before.nbytes)
    return found


def _by_name(index: ShardIndex, folder: ModelFolder) -> dict[str, Stored]:
    """Tensors by their name in the text model, so that a text model saved from a vision-language model matches too."""
    found: dict[str, Stored] = {}
    for one in stored(index, folder, sorted(index.tensors)):
        short = text_name(one.plain_name) or one.plain_name
        found[one.plain_name if short in found else short] = one
    return found


def _places(index: ShardIndex, folder: ModelFolder) -> dict[str, TensorRole]:
    """The writers of a checkpoint, by name. Raises InputError if the layout doesn't fit the checkpoint."""
    gammas = Gammas(index, folder)
    found: dict[str, TensorRole] = {}
    for placed in placed_writers(index, folder):
        axis = writer_axis(index, placed)
        found[placed.name] = TensorRole("mtp" if placed.mtp else placed.writer.component, placed.layer, axis, gammas.behind(placed))
    if folder.layout.embedding_norm is None:  # if a norm follows the embedding, it can't be edited exactly and is no writer
        shared = shared_writers(index, folder)
        found |= {name: TensorRole(kind, None, min(axis, len(index.tensors[name].shape) - 1)) for name, (kind, axis) in shared.items()}
    return found


def _other(tensor: Stored, folder: ModelFolder) -> TensorRole:
    """The kind of a tensor that doesn't write into the residual stream."""
    text = text_name(tensor.plain_name)
    if text is None:
        return TensorRole("vision")
    if text == folder.layout.unembedding:
        return TensorRole("unembedding")
    return TensorRole("norm" if "norm" in text.split(".")[-2:][0] else "other")


def _compare(before: Stored, after: Stored, place: TensorRole, found: Difference) -> None:
    """Compare one tensor: count it and, if it differs, describe the change."""
    name = before.plain_name
    old, new = before.parts, after.parts
    types = [parts[0].dtype for parts in (old, new)]
    if before.shape != after.shape:
        found.reshaped.append(Reshaped(name=name, base=tuple(before.shape), derived=tuple(after.shape)))
        return
    if _same_bytes(before.index, old, after.index, new):
        found.same[place.kind] += 1
        return
    a, b = before.values(), after.values()
    if torch.equal(a, b) or (a.dtype != b.dtype and (torch.equal(a.to(b.dtype), b) or torch.equal(a, b.to(a.dtype)))):
        found.recast.append(name)
        found.same[place.kind] += 1
        return
    found.changed[place.kind] += 1
    # A quantised base is coarser than what is made of it, so that only the derived tensor's rounding counts.
    rounded = [after] if before.format is not PLAIN else [before, after]
    bits = min(one.format.bits(one.parts[0].dtype) for one in rounded)
    for part, x, y, axis in _matrices(name, a, b, place.axis):
        found.changes.append(_change(part, place, " > ".join(dict.fromkeys(types)), x, y, axis, bits, before))


def _same_bytes(old_index: ShardIndex, old: Sequence[TensorInfo], new_index: ShardIndex, new: Sequence[TensorInfo]) -> bool:
    """Whether two tensors and their scales are stored identically, byte for byte."""
    if [(part.dtype, part.shape) for part in old] != [(part.dtype, part.shape) for part in new]:
        return False
    with reading(new_index.folder):
        return all(first_difference(old_index, a, new_index, b) is None for a, b in zip(old, new, strict=True))


def _matrices(name: str, a: Tensor, b: Tensor, axis: int | None) -> Iterator[tuple[str, Tensor, Tensor, int | None]]:
    """A tensor as matrices: one per differing expert for fused experts, one for the whole tensor for convolution kernels."""
    if a.ndim == 3 and min(a.shape[1:]) > 1 and (axis is not None or "conv" not in name):
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            if not torch.equal(x, y):
                yield f"{name}[{number}]", x, y, None if axis is None else axis - 1
    elif a.ndim > 2:
        yield name, a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1), None
    else:
        yield name, a, b, axis


def _change(name: str, place: TensorRole, dtype: str, a: Tensor, b: Tensor, axis: int | None, bits: int, source: Stored) -> TensorChange:
    writer = axis is not None
    x, y = (t.view(-1, 1) if t.ndim < 2 else t.T if axis == 1 else t for t in (a, b))
    delta = difference(x, y)
    energy, size = squared_norm(delta), squared_norm(x) ** 0.5
    if not energy < float("inf") or not size < float("inf"):
        raise InputError(f"{source.index.folder}: {name} holds NaN or infinite values here or in the derived model; one is damaged")
    made = TensorChange(name, place.kind, place.layer, tuple(a.shape), dtype, writer, energy**0.5 / size if size else None)
    noise = rounding_noise(y, bits, energy)
    if a.ndim < 2:
        pair = torch.stack([a, b]).float() * (1.0 if place.gamma is None else place.gamma.float())
        return replace(made, pair=pair, floor=noise.floor) if writer else made
    found, rescaled = spectrum(delta, noise), None
    del delta
    if writer:
        found, rescaled = without_rescaling(x, y, found, bits)
    made = replace(
        made,
        rank=found.rank,
        values=tuple(found.values[:LEADING].tolist()),
        first_share=found.first_share,
        floor=found.noise.floor,
        rescaled=rescaled,
    )
    return _along(made, x, y, found.left, place.gamma) if writer else made


def _along(change: TensorChange, x: Tensor, y: Tensor, left: Float[Tensor, "d_model leading"], gamma: Tensor | None) -> TensorChange:
    """A writer's change with its directions. If a norm follows the writer, there are two readings: the edit took gamma into account or not.
    The reading with the larger ``own`` wins."""
    readings = []
    for scale in (None, gamma.float()) if gamma is not None else (None,):
        u = left[:, : min(LEADING, change.rank or 1)]
        rows = torch.linalg.qr(u if scale is None else scale[:, None] * u).Q.T
        pairs = [(_product(q, x), _product(q, y)) for q in (rows if scale is None else rows * scale)]
        before, after = pairs[0]
        size = float(before.norm())
        strength = float((before - after) @ before) / size**2 if size else 0.0
        weights = torch.tensor(change.values[: len(pairs)]).square()
        own = float((weights * torch.tensor([_own(*pair) for pair in pairs]).square()).sum() / weights.sum()) ** 0.5
        fields = {"left": float(after.norm()) / size if size else None, "strength": strength, "own": own}
        readings.append({**fields, "directions": rows, "through_norm": scale is not None if gamma is not None else None})
    return replace(change, **max(readings, key=lambda reading: reading["own"]))


def _own(before: Float[Tensor, " n"], after: Float[Tensor, " n"]) -> float:
    """|cos| between what a matrix wrote along a direction and how that changed."""
    gone = before - after
    return abs(float(gone @ before)) / (float(before.norm()) * float(gone.norm()) or 1.0)


def _product(row: Float[Tensor, " m"], matrix: Float[Tensor, "m n"]) -> Float[Tensor, " n"]:
    """row @ matrix in float32, one band of rows at a time."""
    bands = zip(torch.split(row, 256), torch.split(matrix, 256), strict=True)
    made = torch.zeros(matrix.shape[1])
    for part, band in bands:
        made += part @ band.float()
    return made
