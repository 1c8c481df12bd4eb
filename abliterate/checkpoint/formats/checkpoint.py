"""An edit as a checkpoint of its own, with its proof."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

from abliterate.checkpoint.edit import edit_checkpoint, work_of
from abliterate.checkpoint.formats.format import Job, WholeEdit
from abliterate.checkpoint.tasks import BLOCKS, EXPONENTS
from abliterate.model.index import ShardIndex
from abliterate.model.source import edited_folder
from abliterate.terminal.progress import stage

BF16 = 2  # bytes


def write(job: Job) -> str:
    """Write and prove the checkpoint."""
    with stage("bytes written and proven", work_of(job.folder, job.edit)) as advance:
        result = edit_checkpoint(job.folder, job.edit, job.out, job.base, job.card, advance, job.revision)
    return f"{job.out}: {result.tensors} tensors edited, at most {result.proof.worst.left:.2e} of the component left"


def nbytes(edit: WholeEdit) -> int:
    """The bytes of the new checkpoint: those of the base, but all packed tensors of an edited module become bf16."""
    unpacked = {w.name.rpartition(".")[0] for w in edit.writers if w.form == "mxfp4"}
    return edit.stored + _growth(edit.index, unpacked)


def holds(path: Path) -> bool:
    """Whether the folder, or a run's folder around it, holds a checkpoint."""
    return (edited_folder(path) / "config.json").is_file()


def _growth(index: ShardIndex, unpacked: Collection[str]) -> int:
    grown = 0
    for name, info in index.tensors.items():
        module, _, last = name.rpartition(".")
        if module in unpacked and last.endswith(BLOCKS):
            grown += 2 * math.prod(info.shape) * BF16 - info.nbytes
        elif module in unpacked and last.endswith(EXPONENTS):
            grown -= info.nbytes
    return grown
