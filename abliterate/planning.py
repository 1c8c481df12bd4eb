"""What a run would read, write, edit, hold in memory and compute; from headers and configs only."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from abliterate.checkpoint.output import plan_output
from abliterate.checkpoint.tasks import edit_tasks
from abliterate.model.folder import ModelFolder
from abliterate.model.index import open_index
from abliterate.model.plan import whole_plan

TOKENS_PER_PROMPT = 64  # a short request in a chat template
_SCRATCH = 3 << 27  # blocks in float32, and Python
_SETS, _MODELS, _CANDIDATES = 4, 2, 12


@dataclass(frozen=True)
class RunPlan:
    """Figures of a run to come; bytes, floating-point operations, counts."""

    path: Path
    model_type: str
    layers: int
    d_model: int
    parameters: int
    read_bytes: int
    write_bytes: int
    free_bytes: int
    edited_tensors: int
    edited_bytes: int
    model_memory_bytes: int
    edit_memory_bytes: int
    unpacked: int
    collect_flops: float
    select_flops: float
    generate_flops: float


def plan_run(folder: ModelFolder, prompts_per_set: int, max_new_tokens: int) -> RunPlan:
    """Plan a default run over ``prompts_per_set`` prompts of each of four sets. Raises InputError as a run would."""
    index = open_index(folder.path)
    tasks = edit_tasks(index, folder, whole_plan(folder.layers, folder.d_model))
    output = plan_output(index, tasks)
    sizes = {name: math.prod(info.shape) for name, info in output.tensors.items()}
    parameters = sum(sizes.values())
    width = 4 if not torch.cuda.is_available() else 2
    largest_edited = max(output.tensors[name].nbytes for name in tasks)
    tokens = _SETS * prompts_per_set * TOKENS_PER_PROMPT
    return RunPlan(
        path=folder.path,
        model_type=folder.model_type,
        layers=folder.layers,
        d_model=folder.d_model,
        parameters=parameters,
        read_bytes=index.nbytes,
        write_bytes=output.nbytes,
        free_bytes=shutil.disk_usage(folder.path).free,
        edited_tensors=len(tasks),
        edited_bytes=sum(output.tensors[name].nbytes for name in tasks),
        model_memory_bytes=parameters * width,
        edit_memory_bytes=2 * largest_edited + _SCRATCH,
        unpacked=len(output.unpacked),
        collect_flops=2.0 * parameters * tokens,
        select_flops=2.0 * parameters * tokens / 3 * _CANDIDATES / _SETS * 3,
        generate_flops=2.0 * parameters * _MODELS * _SETS * prompts_per_set * (TOKENS_PER_PROMPT + max_new_tokens),
    )


def lines(plan: RunPlan) -> list[str]:
    """The plan for people, one figure a line."""
    giga = 1e9
    size = f"{plan.layers} blocks of width {plan.d_model}, {plan.parameters / giga:.2f} G parameters"
    memory = f"{plan.model_memory_bytes / giga:.2f} GB for the model, {plan.edit_memory_bytes / giga:.2f} GB for the edit"
    rows = {
        "model": f"{plan.path} ({plan.model_type}, {size})",
        "reads": f"{plan.read_bytes / giga:.2f} GB of weights",
        "writes": f"{plan.write_bytes / giga:.2f} GB checkpoint ({plan.free_bytes / giga:.1f} GB free beside the model)",
        "edits": f"{plan.edited_tensors} tensors of {plan.edited_bytes / giga:.2f} GB: attention output and MLP down of each block",
        **({"format": f"the experts of {plan.unpacked} modules leave MXFP4 for bf16"} if plan.unpacked else {}),
        "memory": memory,
        "collection": f"{plan.collect_flops / 1e12:.1f} TFLOP",
        "selection": f"{plan.select_flops / 1e12:.1f} TFLOP",
        "generation": f"{plan.generate_flops / 1e12:.1f} TFLOP",
    }
    return [f"{name:<12} {text}" for name, text in rows.items()]
