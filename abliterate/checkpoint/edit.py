"""Edit a checkpoint: validate, copy, edit tensor by tensor, prove, and only then rename the new folder to its final name."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from abliterate import __version__
from abliterate.checkpoint.licence import stated_licence
from abliterate.checkpoint.names import PLAN, PROOF
from abliterate.checkpoint.output import Output, marked, new_config, new_index, plan_output
from abliterate.checkpoint.proof import FORMULA, prove
from abliterate.checkpoint.provenance import provenance
from abliterate.checkpoint.records import PROOF_SCHEMA, EmbeddingRecord, Proof, SelfCheck, TensorProof, Worst
from abliterate.checkpoint.selfcheck import self_check
from abliterate.checkpoint.stream import write_shards
from abliterate.checkpoint.tasks import edit_tasks, placed_writers
from abliterate.checkpoint.write import copy_side_files, left_behind, new_folder
from abliterate.errors import CheckError, InputError
from abliterate.files import check_destination, write_json
from abliterate.model.agreement import check_agreement
from abliterate.model.edit import Edit, save_edit, whole_edit
from abliterate.model.folder import ModelFolder
from abliterate.model.index import INDEX, ShardIndex, open_index
from abliterate.model.tensor_names import text_name
from abliterate.terminal.progress import say

_ROOM = 64 << 20  # bytes for side files, proof and card


@dataclass(frozen=True)
class EditResult:
    """Figures of a finished edit."""

    tensors: int
    written_bytes: int
    proof: Proof


def check_editable(folder: ModelFolder) -> SelfCheck:
    """Raises InputError if an edit of this model would not be exact. Uses only headers and a small copy, to fail before hours of work."""
    index = open_index(folder.path)
    edit_tasks(index, folder, whole_edit(folder.layers, folder.d_model))
    return self_check(folder, index)


def work_of(folder: ModelFolder, edit: Edit) -> int:
    """The bytes that an edit writes and reads back. Raises InputError if the checkpoint, the layout and the edit don't fit together."""
    index = open_index(folder.path)
    tasks = edit_tasks(index, folder, edit)
    output = plan_output(index, tasks, to_untie(index, folder, edit))
    return output.nbytes + sum(output.tensors[name].nbytes for name in tasks)


def edit_checkpoint(
    folder: ModelFolder,
    edit: Edit,
    out: Path,
    base: str,
    card: Callable[[Proof], str],
    advance: Callable[[int], None] = lambda done: None,
    revision: str | None = None,
) -> EditResult:
    """Write the edited checkpoint of ``folder`` to ``out``, a new folder that appears only when it is complete and proven.

    ``card`` makes the README.md from the proof. ``advance`` counts the bytes of ``work_of``. ``revision``: the base's revision on the Hub.
    Headers of shards with an edited tensor get provenance metadata; other shards stay unchanged. Reads one tensor at a time. Raises
    InputError for an unusable source or destination, and CheckError if the proof fails; in both cases ``out`` does not exist.
    """
    index = open_index(folder.path)
    check_destination(out, folder.path)
    tasks = edit_tasks(index, folder, edit)
    checked = self_check(folder, index)
    output = plan_output(index, tasks, to_untie(index, folder, edit))
    check_agreement(folder, index)
    with new_folder(out, output.nbytes + _ROOM) as partial:
        copy_side_files(folder.path, partial)
        if left := left_behind(folder.path, index.shards):
            say(f"{folder.path.name}: not copied because not part of the model: {left}")
        save_edit(edit, partial / PLAN)
        (partial / PLAN).chmod(0o644)  # safetensors creates files that only the owner can read
        output = marked(output, tasks, provenance(base, partial / PLAN))
        _write_settings(index, folder, output, partial)
        before = write_shards(index, output, tasks, partial, advance)
        written = open_index(partial)
        if written.tensors != output.tensors:
            raise CheckError(f"{partial}: the written tensors differ from those planned for {folder.path}")
        proof = _proof(index, folder, edit, output, base, revision, checked, prove(written, tasks, before, advance))
        write_json(proof, partial / PROOF)
        (partial / "README.md").write_text(card(proof), encoding="utf-8")
    return EditResult(len(tasks), output.nbytes, proof)


def to_untie(index: ShardIndex, folder: ModelFolder, edit: Edit) -> tuple[str, str] | None:
    """The name of the embedding and of the new unembedding that gets its old weights; None if the edit doesn't untie them."""
    if edit.embedding != "untie" or not folder.tied:
        return None
    layout = folder.layout
    embedding = next((name for name in index.tensors if text_name(name) == layout.embedding), None)
    if embedding is None or any(text_name(name) == layout.unembedding for name in index.tensors):
        raise InputError(
            f"{folder.path}: can't untie the embeddings: {layout.embedding} is missing or {layout.unembedding} is stored too; "
            "use --embedding edit or skip"
        )
    return embedding, layout.unembedding


def unties(folder: ModelFolder, output: Output) -> bool:
    """Whether the new config must set tie_word_embeddings to false while the old config has it true."""
    return folder.says_tied and (output.untied is not None or not folder.tied)


def _proof(
    index: ShardIndex,
    folder: ModelFolder,
    edit: Edit,
    output: Output,
    base: str,
    revision: str | None,
    checked: SelfCheck,
    tensors: Sequence[TensorProof],
) -> Proof:
    """The content of ``abliteration.json``."""
    return Proof(
        format=PROOF_SCHEMA,
        abliterate=__version__,
        base_model=base,
        base_revision=revision,
        licence=stated_licence(folder.path),
        embedding=EmbeddingRecord(policy=edit.embedding, tied_to_unembedding=folder.tied and edit.embedding != "untie"),
        norms=edit.norms,
        unpacked=tuple(output.unpacked),
        formula=FORMULA,
        self_check=checked,
        tensors=tuple(tensors),
        worst=Worst.of(tensors),
        not_edited=tuple(not_edited(index, folder, {tensor.name for tensor in tensors})),
    )


def _write_settings(index: ShardIndex, folder: ModelFolder, output: Output, partial: Path) -> None:
    """Write the shard index, and the config if the form of the checkpoint changed."""
    content = new_index(index, output)
    if content is not None:
        (partial / INDEX).write_bytes(content)
    config = json.loads((folder.path / "config.json").read_text(encoding="utf-8"))
    changed = new_config(config, output, unties(folder, output))
    if changed is not None:
        (partial / "config.json").write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def not_edited(index: ShardIndex, folder: ModelFolder, edited: Collection[str]) -> list[str]:
    """Writers that are not edited, each with the reason. The text is stored in the proof and compared by ``verify``."""
    reasons = []
    for name in sorted(index.tensors):
        text = text_name(name)
        if text is not None and text in (folder.layout.embedding, folder.layout.positions) and name not in edited:
            reasons.append(f"{name}: {_why_skipped(folder)}")
    reasons += [f"{placed.name}: strength 0 in the plan" for placed in placed_writers(index, folder) if placed.name not in edited]
    return reasons


def _why_skipped(folder: ModelFolder) -> str:
    if folder.tied:
        return "it is tied to the unembedding"
    return "a norm stands behind it" if folder.layout.embedding_norm else "the plan skips it"
