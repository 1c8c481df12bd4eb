"""An edit as a checkpoint of its own, with its proof."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from abliterate.checkpoint.edit import edit_checkpoint, work_of
from abliterate.checkpoint.formats.format import Job, WholeEdit
from abliterate.checkpoint.output import module_of, value_bytes
from abliterate.model.formats.format import StoredFormat
from abliterate.model.index import ShardIndex
from abliterate.model.source import edited_folder
from abliterate.terminal.progress import stage


def write(job: Job) -> str:
    """Write and prove the checkpoint."""
    with stage("bytes written and proven", work_of(job.folder, job.edit)) as advance:
        result = edit_checkpoint(job.folder, job.edit, job.out, job.base, job.card, advance, job.revision)
    return f"{job.out}: {result.tensors} tensors edited, at most {result.proof.worst.left:.2e} of the component left"


def nbytes(edit: WholeEdit) -> int:
    """The bytes of the new checkpoint: those of the base, but all matrices of a module with a writer that leaves its format leave it."""
    return edit.stored + _growth(edit.index, edit.unpacked)


def holds(path: Path) -> bool:
    """Whether the folder, or a run's folder around it, holds a checkpoint."""
    return (edited_folder(path) / "config.json").is_file()


def _growth(index: ShardIndex, unpacked: Mapping[str, StoredFormat]) -> int:
    grown = 0
    for name, info in index.tensors.items():
        stored = unpacked.get(module_of(name))
        if stored is None:
            continue
        if stored.matrix_of_companion(name) is not None:
            grown -= info.nbytes
        elif stored.holds(info):
            grown += value_bytes(info, stored) - info.nbytes
    return grown
