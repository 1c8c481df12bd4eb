"""From a plan and a layout to the list of tensors to edit, by name on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from abliterate.checkpoint.index import EDITABLE, ShardIndex
from abliterate.errors import InputError
from abliterate.model.folder import ModelFolder
from abliterate.model.layouts import COMPONENTS
from abliterate.model.plan import EditPlan

WriterKind = Literal["attention", "mlp", "embedding"]


@dataclass(frozen=True)
class EditTask:
    """One tensor to edit: which axis is d_model, the orthonormal rows to remove, and how strongly."""

    name: str
    kind: WriterKind
    axis: int
    rows: Float[Tensor, "k d_model"]
    strength: float


def edit_tasks(index: ShardIndex, folder: ModelFolder, plan: EditPlan) -> dict[str, EditTask]:
    """Every tensor that the plan changes. Raises InputError where the checkpoint, the layout and the plan don't fit."""
    layout = folder.layout
    if unknown := layout.unknown(index.tensors):
        raise InputError(
            f"{folder.path}: {len(unknown)} tensors are not in the layout {layout.name!r} (first: {unknown[0]}); "
            "a writer may be among them, so the edit would not be exact"
        )
    if beyond := _beyond(index, folder):
        raise InputError(f"{folder.path}: {beyond!r} belongs to no block of the config ({folder.layers} blocks); config and weights differ")
    if plan.layers != folder.layers or plan.direction.shape[-1] != folder.d_model:
        raise InputError(
            f"the direction is for {plan.layers} blocks of width {plan.direction.shape[-1]}; "
            f"{folder.path} has {folder.layers} of width {folder.d_model}"
        )
    tasks: dict[str, EditTask] = {}
    for layer in range(folder.layers):
        for writer in layout.writers:
            component = COMPONENTS.index(writer.component)
            strength = float(plan.strength[layer, component])
            rows = plan.direction[layer, component]
            weight, bias = writer.weight.format(layer=layer), writer.bias.format(layer=layer)
            _require(index, folder, weight, writer.axis)
            if strength:
                tasks[weight] = EditTask(weight, writer.component, writer.axis, rows, strength)
                if bias in index.tensors:
                    _require(index, folder, bias, 0)
                    tasks[bias] = EditTask(bias, writer.component, 0, rows, strength)
    shared = plan.embedding_direction()
    if shared is not None:
        if folder.tied and layout.unembedding in index.tensors:
            raise InputError(f"{folder.path}: the config ties the embeddings, but {layout.unembedding} is stored too; use --embedding skip")
        _require(index, folder, layout.embedding, 1)
        tasks[layout.embedding] = EditTask(layout.embedding, "embedding", 1, shared, plan.embedding_strength)
    return tasks


def _beyond(index: ShardIndex, folder: ModelFolder) -> str | None:
    """The first tensor of a block that the config doesn't have."""
    head, _, _ = folder.layout.block.partition("{layer}")
    numbers = {name: name.removeprefix(head).partition(".")[0] for name in index.tensors if name.startswith(head)}
    return next((name for name, number in sorted(numbers.items()) if number.isdigit() and int(number) >= folder.layers), None)


def _require(index: ShardIndex, folder: ModelFolder, name: str, axis: int) -> None:
    info = index.tensors.get(name)
    if info is None:
        raise InputError(f"{folder.path}: the checkpoint lacks {name}, which its architecture needs")
    if len(info.shape) <= axis or info.shape[axis] != folder.d_model or 0 in info.shape:
        raise InputError(f"{folder.path}: {name} has shape {list(info.shape)}; axis {axis} must be {folder.d_model}")
    if info.dtype not in EDITABLE:
        raise InputError(f"{folder.path}: {name} is stored as {info.dtype}, which can't be edited; use a bf16, fp16 or fp32 checkpoint")
