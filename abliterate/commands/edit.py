"""Edit a checkpoint with any direction file or plan file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from abliterate.checkpoint.adapter import write_adapter
from abliterate.checkpoint.edit import edit_checkpoint, work_of
from abliterate.checkpoint.tasks import edit_tasks
from abliterate.config import EditCommandConfig
from abliterate.model.agreement import open_checkpoint
from abliterate.model.edit import Edit, edit_from_direction, load_direction, load_edit, resolve_embedding
from abliterate.model.folder import ModelFolder
from abliterate.model.source import resolve_model
from abliterate.report.card import model_card
from abliterate.terminal.progress import stage


def edit(config: EditCommandConfig, out: Path) -> str:
    """Edit a checkpoint with a direction file or a plan file into the new folder ``out``. Returns a line that says what was done."""
    source = resolve_model(config.model, config.revision)
    folder, index = open_checkpoint(source.path, config.trust_remote_code, config.layout_file)
    edit = _edit_of(config, folder)
    if config.as_adapter:
        edited = sum(index.tensors[name].nbytes for name in edit_tasks(index, folder, edit) if name in index.tensors)
        with stage("bytes read", edited) as advance:
            matrices, size = write_adapter(folder, edit, out, source.name, advance)
        return f"{out}: a LoRA adapter of {size / 1e6:.2f} MB that changes {matrices} matrices"
    with stage("bytes written and proven", work_of(folder, edit)) as advance:
        result = edit_checkpoint(folder, edit, out, source.name, lambda proof: model_card(proof, None), advance, source.revision)
    return f"{out}: {result.tensors} tensors edited, at most {result.proof.worst.left:.2e} of the component left"


def _edit_of(config: EditCommandConfig, folder: ModelFolder) -> Edit:
    if config.plan is not None:
        edit = load_edit(Path(config.plan)).scaled(config.strength)
        if config.embedding != "auto":
            edit = replace(edit, embedding=resolve_embedding(config.embedding, edit.same_everywhere(), folder.tied))
        return replace(edit, keep_norms=True) if config.norms == "keep" else edit
    direction = load_direction(Path(str(config.direction)))
    return edit_from_direction(direction, folder.layers, config.strength, config.embedding, folder.tied, config.norms == "keep")
