"""Write an edit as a LoRA adapter. It has rank k, so it takes only megabytes, can be removed again, and loads with PEFT or vLLM.

W' = W - alpha w (q W) = W + B A with B = -alpha w and A = q W (Hu et al. 2021, arXiv 2106.09685). Files have PEFT's format
(https://huggingface.co/docs/peft/developer_guides/checkpoint).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from abliterate.checkpoint.formats.format import Job, WholeEdit
from abliterate.checkpoint.orthogonalise import read_component
from abliterate.checkpoint.proof import stored_parts, values
from abliterate.checkpoint.selfcheck import self_check
from abliterate.checkpoint.tasks import EditTask, WriterKind, edit_tasks
from abliterate.checkpoint.write import new_folder
from abliterate.errors import InputError
from abliterate.files import Json, check_destination
from abliterate.model.agreement import check_agreement
from abliterate.model.edit import Edit, whole_edit
from abliterate.model.folder import ModelFolder
from abliterate.model.index import ShardIndex, open_index
from abliterate.model.tensor_names import text_name
from abliterate.terminal.progress import stage

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write(job: Job) -> str:
    """Write the adapter. It holds no proof; its effect is that of the checkpoint, whose proof can be had."""
    edited = sum(job.index.tensors[name].nbytes for name in edit_tasks(job.index, job.folder, job.edit) if name in job.index.tensors)
    with stage("bytes read", edited) as advance:
        matrices, size = write_adapter(job.folder, job.edit, job.out, job.base, advance)
    return f"{job.out}: a LoRA adapter of {size / 1e6:.2f} MB that changes {matrices} matrices"


def nbytes(edit: WholeEdit) -> int | None:
    """Bytes of an adapter that makes the edit; None if no adapter can."""
    try:
        check_adaptable(edit.index, edit.folder, whole_edit(edit.folder.layers, edit.folder.d_model), edit.kinds)
    except InputError:
        return None
    return sum(4 * sum(edit.index.tensors[name].shape) for name in edit.kinds)


def holds(path: Path) -> bool:
    """Whether the folder holds an adapter, and no model beside it."""
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def write_adapter(
    folder: ModelFolder, edit: Edit, out: Path, base: str, advance: Callable[[int], None] = lambda done: None
) -> tuple[int, int]:
    """Write the edit of ``folder`` as a LoRA adapter into the new folder ``out``. Returns the number of changed matrices and of bytes.

    Raises InputError if the edit is not a low-rank edit of plain matrices: it keeps norms, changes tied embeddings, or edits biases or
    experts.
    """
    index = open_index(folder.path)
    check_destination(out, folder.path)
    tasks = edit_tasks(index, folder, edit)
    check_adaptable(index, folder, edit, {name: task.kind for name, task in tasks.items()})
    self_check(folder, index)
    check_agreement(folder, index)
    tensors: dict[str, Tensor] = {}
    modules: list[str] = []
    for name, task in tasks.items():
        module = _module(name, folder)
        modules.append(module)
        tensors |= {f"base_model.model.{module}.{part}": tensor for part, tensor in _factors(index, task).items()}
        advance(index.tensors[name].nbytes)
    with new_folder(out, sum(t.nbytes for t in tensors.values()) + (1 << 20)) as partial:
        save_file(tensors, partial / WEIGHTS, {"format": "pt"})
        _write_json(partial / CONFIG, _config(edit, modules, base, tasks))
        text = "---\nlibrary_name: peft\n" + (f"base_model: {base}\n" if "/" in base else "") + "tags:\n- abliteration\n---\n\n"
        text += (
            f"# Directional ablation of {base} as a LoRA adapter\n\nRank {edit.direction.shape[2]}, {len(modules)} matrices, no training: "
            "it subtracts what these matrices write along a direction of the residual stream (Arditi et al. 2024, arXiv 2406.11717).\n"
            "Its effect on the model's behaviour was not measured.\n"
        )
        (partial / "README.md").write_text(text, encoding="utf-8")
    return len(modules), sum(t.nbytes for t in tensors.values())


def check_adaptable(index: ShardIndex, folder: ModelFolder, edit: Edit, kinds: Mapping[str, WriterKind]) -> None:
    """Raises InputError if an adapter can't make this edit. ``kinds``: the edited writers, by name."""
    why = None
    if not kinds:
        why = "every strength is 0"
    elif edit.keep_norms:
        why = "--norms keep is not a low-rank edit"
    elif edit.embedding == "untie" or (folder.tied and edit.embedding == "edit"):
        why = "an adapter can't change tied embeddings as an edited checkpoint would; use --embedding skip"
    elif any(kind in ("projector", "positions") for kind in kinds.values()):
        why = "its positions or vision projector are edited too; use --embedding skip"
    for name, kind in kinds.items():
        if len(index.tensors[name].shape if name in index.tensors else ()) != 2 or ".experts." in name:
            why = why or f"{name} is not a plain matrix (a bias or an expert), which an adapter can't change"
        if kind == "mtp":
            why = why or f"{name} belongs to multi-token prediction, which transformers doesn't load"
        if text_name(name) != name:
            why = why or f"{name} has another name when transformers loads it"
    if why:
        raise InputError(f"{folder.path}: can't be edited as an adapter: {why}; edit the weights instead (--as checkpoint)")


def _module(name: str, folder: ModelFolder) -> str:
    """The module's name in memory."""
    layout, plain = folder.layout, name.removesuffix(".weight")
    where = layout.in_block(name)
    if where is not None:
        return f"{layout.block_module.format(where[0])}.{where[1].removesuffix('.weight')}"
    return layout.embedding_module if name == layout.embedding else plain


def _factors(index: ShardIndex, task: EditTask) -> dict[str, Tensor]:
    """A [k, in] and B [out, k] in float32. For the embedding, whose weight is transposed: [k, vocab] and [d_model, k]."""
    found = read_component(values(task, stored_parts(index, task)), task.removal, task.axis)
    if not found.finite:
        raise InputError(f"{index.folder}: {task.name} holds NaN or infinite values; the checkpoint is damaged")
    read = found.component[0] if task.axis == 0 else found.component[:, :, 0].T
    a, b = read.float().contiguous(), (-task.strength * task.removal.w).float().contiguous()
    if task.kind == "embedding":
        return {"lora_embedding_A": a, "lora_embedding_B": b}
    return {"lora_A.weight": a, "lora_B.weight": b}


def _config(edit: Edit, modules: list[str], base: str, tasks: Mapping[str, EditTask]) -> Json:
    k = int(edit.direction.shape[2])
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": k,
        "lora_alpha": k,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(task.axis == 1 and task.kind != "embedding" for task in tasks.values()),
        "inference_mode": True,
        "target_modules": modules,
    }


def _write_json(path: Path, content: Json) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
