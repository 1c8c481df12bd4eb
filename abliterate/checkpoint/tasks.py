"""List the tensors that an edit changes, by their name on disk, from the edit and the layout."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from abliterate.errors import InputError
from abliterate.model.edit import Edit
from abliterate.model.folder import ModelFolder
from abliterate.model.formats.format import StoredFormat
from abliterate.model.formats.plain import EDITABLE, PLAIN
from abliterate.model.formats.table import format_of, matrix_of
from abliterate.model.index import ShardIndex
from abliterate.model.layouts import COMPONENTS, Layout, Writer
from abliterate.model.removal import Removal, removal
from abliterate.model.tensor_names import is_buffer, projector_axis, template, text_name

WriterKind = Literal["attention", "mlp", "mtp", "embedding", "positions", "projector"]
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class EditTask:
    """One tensor to edit: the axis of d_model, how to read and remove the component, and the strength.

    ``name``: the tensor's name in the new checkpoint. ``stored``: how the old checkpoint stores it.
    """

    name: str
    kind: WriterKind
    axis: int
    removal: Removal
    strength: float
    keep_norms: bool = False
    stored: StoredFormat = PLAIN


@dataclass(frozen=True)
class WriterTensor:
    """A writer's weight or bias in a block."""

    name: str
    layer: int
    writer: Writer
    bias: bool
    stored: StoredFormat
    mtp: bool

    @property
    def leaves_format(self) -> bool:
        """Whether it is stored in another format once it is edited."""
        return self.stored.written is not self.stored


def edit_tasks(index: ShardIndex, folder: ModelFolder, edit: Edit) -> dict[str, EditTask]:
    """Every tensor that the edit changes. Raises InputError if the checkpoint, the layout and the edit don't fit together."""
    if edit.layers != folder.layers or edit.direction.shape[-1] != folder.d_model:
        raise InputError(
            f"the direction is for {edit.layers} blocks of width {edit.direction.shape[-1]}; "
            f"{folder.path} has {folder.layers} of width {folder.d_model}"
        )
    tasks: dict[str, EditTask] = {}
    gammas = Gammas(index, folder)
    for placed in placed_writers(index, folder):
        layer = min(placed.layer, folder.layers - 1)  # multi-token prediction blocks use the last block's edit
        component = COMPONENTS.index(placed.writer.component)
        strength = float(edit.strength[layer, component])
        if strength:
            removed = gammas.removal(placed, edit, layer, component)
            kind: WriterKind = "mtp" if placed.mtp else placed.writer.component
            axis = writer_axis(index, placed)
            tasks[placed.name] = EditTask(placed.name, kind, axis, removed, strength, edit.keep_norms, placed.stored)
    return tasks | _shared_tasks(index, folder, edit)


def placed_writers(index: ShardIndex, folder: ModelFolder) -> list[WriterTensor]:
    """The writers of every block, sorted by name. Raises InputError if a block has no writer, or a writer doesn't fit the layout."""
    found: list[WriterTensor] = []
    for name in sorted(index.tensors):
        placed = _place(name, index, folder)
        if placed is not None:
            _fits(index, folder, placed)
            found.append(placed)
    if empty := sorted(set(range(folder.layers)) - {p.layer for p in found}):
        raise InputError(f"{folder.path}: block {empty[0]} has no tensor that its layout {folder.layout.name!r} calls a writer")
    return found


def _place(name: str, index: ShardIndex, folder: ModelFolder) -> WriterTensor | None:
    text, layout = text_name(name), folder.layout
    where = layout.in_block(text) if text is not None else None
    stored = format_of(index.tensors[name], folder.stored)
    if where is None:
        if text in layout.mtp_root:
            return WriterTensor(stored.matrix(name), folder.layers, Writer(str(text), "mlp"), False, stored, True)
        return None
    number, inner, in_mtp = where
    writer = layout.writer_of(stored.matrix(inner))
    if writer is None:
        return None
    layer = folder.layers if in_mtp else number
    return WriterTensor(stored.matrix(name), layer, writer[0], writer[1], stored, layer >= folder.layers)


def writer_axis(index: ShardIndex, placed: WriterTensor) -> int:
    """The axis of d_model in a writer's weight or bias."""
    return len(index.tensors[placed.name].shape) - 1 if placed.bias else placed.writer.axis


def _fits(index: ShardIndex, folder: ModelFolder, placed: WriterTensor) -> None:
    """Raises InputError if a writer's shape or dtype does not fit the layout."""
    fault = placed.stored.fault(placed.name, index.tensors, writer_axis(index, placed), folder.d_model)
    if fault is not None:
        raise InputError(f"{folder.path}: {fault}")


class Gammas:
    """The norms between writers and the residual stream, read when needed."""

    def __init__(self, index: ShardIndex, folder: ModelFolder) -> None:
        self._index, self._folder = index, folder
        self._bare: dict[tuple[int, int], Removal] = {}

    def removal(self, placed: WriterTensor, edit: Edit, layer: int, component: int) -> Removal:
        """How to remove an edit's directions from a writer. Writers of a block without a norm after them (its experts) share one object."""
        rows = edit.direction[layer, component]
        gamma = self.behind(placed)
        if gamma is not None:
            return removal(rows, gamma)
        if (layer, component) not in self._bare:
            self._bare[layer, component] = removal(rows)
        return self._bare[layer, component]

    def behind(self, placed: WriterTensor) -> Float[Tensor, " d_model"] | None:
        """The scale of the norms after a writer; None if there are none. Raises InputError for a damaged norm."""
        gamma: Tensor | None = None
        inside = placed.writer.weight if not placed.bias else str(placed.writer.bias)
        head = placed.name.removesuffix(_filled(inside, placed.name))
        for norm in placed.writer.norms:
            name = f"{head}{norm}.weight"
            if name in self._index.tensors:
                weight = self._weight(name) + placed.writer.offset
                gamma = weight if gamma is None else gamma * weight
        return gamma

    def _weight(self, name: str) -> Tensor:
        info = self._index.tensors[name]
        if info.shape != (self._folder.d_model,) or info.dtype not in EDITABLE:
            raise InputError(f"{self._folder.path}: {name} has shape {list(info.shape)} of {info.dtype}, expected [{self._folder.d_model}]")
        weight: Tensor = self._index.read(name).double()
        if not bool(weight.isfinite().all()):
            raise InputError(f"{self._folder.path}: {name} holds NaN or infinite values; the checkpoint is damaged")
        return weight


def _filled(inner: str, name: str) -> str:
    """The end of ``name`` that matches the template ``inner``."""
    return ".".join(name.split(".")[-len(inner.split(".")) :])


def _shared_tasks(index: ShardIndex, folder: ModelFolder, edit: Edit) -> dict[str, EditTask]:
    rows = edit.embedding_direction()
    if rows is None:
        return {}
    if folder.tied and edit.embedding == "edit" and any(text_name(n) == folder.layout.unembedding for n in index.tensors):
        raise InputError(
            f"{folder.path}: the config ties the embeddings, but {folder.layout.unembedding} is stored too; use --embedding skip"
        )
    removed = removal(rows)
    return {
        name: EditTask(name, kind, axis, removed, edit.embedding_strength, edit.keep_norms)
        for name, (kind, axis) in shared_writers(index, folder).items()
    }


def shared_writers(index: ShardIndex, folder: ModelFolder) -> dict[str, tuple[WriterKind, int]]:
    """Writers outside the blocks, each with its kind and d_model's axis: the token embedding, learned positions, and the last layer of a
    vision projector. Raises InputError if they can't be edited."""
    layout = folder.layout
    if layout.embedding_norm is not None:
        raise InputError(f"{folder.path}: a norm follows the token embedding, so it can't be edited exactly; use --embedding skip")
    found: dict[str, tuple[WriterKind, int]] = {}
    for name, info in index.tensors.items():
        kind, axis = _shared_kind(name, layout, index.tensors)
        if kind is None:
            continue
        if len(info.shape) <= axis or info.shape[axis] != folder.d_model or info.dtype not in EDITABLE:
            raise InputError(f"{folder.path}: {name} has shape {list(info.shape)} of {info.dtype}; axis {axis} must be {folder.d_model}")
        found[name] = (kind, axis)
    if not any(kind == "embedding" for kind, _ in found.values()):
        raise InputError(f"{folder.path}: the checkpoint lacks {layout.embedding}, which its architecture needs")
    return found


def _shared_kind(name: str, layout: Layout, names: Collection[str]) -> tuple[WriterKind | None, int]:
    text = text_name(name)
    if text is None:
        axis = projector_axis(name, names)
        return ("projector", axis) if axis is not None else (None, 0)
    if text == layout.embedding or _is_mtp_embedding(text, layout):
        return "embedding", 1
    return ("positions", 1) if text == layout.positions else (None, 0)


def _is_mtp_embedding(text: str, layout: Layout) -> bool:
    """Whether this is a copy of the embedding in a multi-token prediction block."""
    where = layout.in_block(text)
    return (where is not None and where[1] == "embed_tokens.weight") or text == "mtp.embed_tokens.weight"


def unplaced(names: Collection[str], folder: ModelFolder, known: Collection[str]) -> list[str]:
    """Tensors without a counterpart in the small copy (whose names are ``known``) and without another explanation.

    A writer may be among them. Explained are: parts of multi-token prediction in blocks after the last one, vision parts, buffers, scales,
    and a stored copy of a tied unembedding, which write nothing to the stream.
    """
    layout, left = folder.layout, []
    templates = {template(name) for name in known}
    inside = {template(found[1]) for name in known if (found := layout.in_block(name))}
    behind = inside | set(layout.mtp_others) | {f"{module}.weight" for module in layout.mtp}
    for name in names:
        text = text_name(name)
        if text is None or is_buffer(name) or text == layout.unembedding or text in layout.mtp_root or text in layout.mtp_others:
            continue
        where = layout.in_block(text)
        if where is not None and (where[2] or where[0] >= folder.layers):
            explained = (where[2] or bool(layout.mtp)) and _in_some_format(where[1], behind)
        else:
            explained = _in_some_format(text, templates)
        if not explained:
            left.append(name)
    return sorted(left)


def _in_some_format(name: str, templates: Collection[str]) -> bool:
    """Whether a tensor has one of these names, or is a part of a matrix that has one."""
    return template(name) in templates or template(matrix_of(name)) in templates


def writer_kinds(names: Collection[str], folder: ModelFolder) -> dict[int, frozenset[str]]:
    """The writers of each block and the norms after them, as names inside the block with ``*`` for expert numbers."""
    kinds: dict[int, set[str]] = {layer: set() for layer in range(folder.layers)}
    norms = {f"{norm}.weight" for writer in folder.layout.writers for norm in writer.norms}
    for name in names:
        text = text_name(name)
        where = folder.layout.in_block(text) if text is not None else None
        if where is not None and not where[2] and where[0] < folder.layers:
            inner = template(folder.stored.matrix(where[1]))
            if inner in norms or folder.layout.writer_of(inner) is not None:
                kinds[where[0]].add(inner)
    return {layer: frozenset(kind) for layer, kind in kinds.items()}


def missing_expert(names: Collection[str]) -> str | None:
    """The first tensor that one expert lacks and other experts have; None if every expert is complete."""
    numbers: dict[str, dict[str, set[int]]] = {}
    for name in names:
        if match := _EXPERT.fullmatch(name):
            numbers.setdefault(match[1], {}).setdefault(match[3], set()).add(int(match[2]))
    for stem, tails in sorted(numbers.items()):
        everyone = set().union(*tails.values())
        for tail, have in sorted(tails.items()):
            if lost := sorted(everyone - have):
                return f"{stem}.{lost[0]}.{tail}"
    return None
