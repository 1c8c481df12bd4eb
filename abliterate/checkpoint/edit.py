"""The edit of a checkpoint: validate, copy, edit tensor by tensor, prove, and only then give it its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abliterate.checkpoint.index import open_index
from abliterate.checkpoint.proof import proof_document, prove, write_proof
from abliterate.checkpoint.tasks import edit_tasks
from abliterate.checkpoint.write import check_destination, copy_side_files, new_folder, write_shards
from abliterate.model.folder import ModelFolder
from abliterate.model.plan import EditPlan, whole_plan

_ROOM = 64 << 20  # side files, proof, card


@dataclass(frozen=True)
class EditResult:
    """Figures of a finished edit."""

    tensors: int
    written_bytes: int
    proof: dict[str, Any]


def check_editable(folder: ModelFolder) -> None:
    """Raise InputError where an edit of this model would not be exact; headers only, so that it is known before hours of work."""
    edit_tasks(open_index(folder.path), folder, whole_plan(folder.layers, folder.d_model))


def edit_checkpoint(
    folder: ModelFolder,
    plan: EditPlan,
    out: Path,
    base: str,
    card: Callable[[dict[str, Any]], str],
    advance: Callable[[int], None] = lambda done: None,
) -> EditResult:
    """Write the edited checkpoint of ``folder`` to ``out``, a new folder that appears only when it is whole and proven.

    ``card`` makes the README.md from the proof. Reads one tensor at a time. Raises InputError for a source or destination
    that won't do, CheckError where the proof fails; in both cases nothing stands under ``out``.
    """
    index = open_index(folder.path)
    check_destination(out, folder.path)
    tasks = edit_tasks(index, folder, plan)
    with new_folder(out, index.nbytes + _ROOM) as partial:
        copy_side_files(folder.path, partial)
        write_shards(index, tasks, partial, advance)
        proofs = prove(index, partial, tasks, lambda done: None)
        document = proof_document(proofs, base, plan.embedding, folder.tied, _not_edited(folder, plan, set(tasks)))
        write_proof(document, partial)
        (partial / "README.md").write_text(card(document), encoding="utf-8")
    return EditResult(len(tasks), index.nbytes, document)


def _not_edited(folder: ModelFolder, plan: EditPlan, edited: set[str]) -> list[str]:
    """Writers that keep what they write along the directions, each with the reason."""
    reasons = []
    if folder.layout.embedding not in edited:
        why = "it is tied to the unembedding" if folder.tied else "the plan skips it"
        reasons.append(f"{folder.layout.embedding}: {why}")
    for writer in folder.layout.writers:
        reasons += [
            f"{name}: strength 0 in the plan"
            for name in (writer.weight.format(layer=layer) for layer in range(plan.layers))
            if name not in edited
        ]
    return reasons
