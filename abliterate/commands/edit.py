"""Edit a checkpoint with any direction file or plan file, and write the edit in the chosen format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from abliterate.checkpoint.formats.format import Job
from abliterate.checkpoint.formats.table import TABLE
from abliterate.config import EditCommandConfig
from abliterate.model.agreement import open_checkpoint
from abliterate.model.edit import Edit, edit_from_direction, load_direction, load_edit, resolve_embedding
from abliterate.model.folder import ModelFolder
from abliterate.model.source import resolve_model
from abliterate.report.card import model_card


def edit(config: EditCommandConfig, out: Path) -> str:
    """Edit a checkpoint with a direction file or a plan file into the new folder ``out``, in the format that ``--as`` names.

    Returns a line that says what was done.
    """
    source = resolve_model(config.model, config.revision)
    folder, index = open_checkpoint(source.path, config.trust_remote_code, config.layout_file)
    job = Job(
        folder=folder,
        index=index,
        edit=_edit_of(config, folder),
        out=out,
        base=source.name,
        revision=source.revision,
        type=config.output.type,
        card=lambda proof: model_card(proof, None),
    )
    return TABLE[config.output.name].write(job)


def _edit_of(config: EditCommandConfig, folder: ModelFolder) -> Edit:
    if config.plan is not None:
        edit = load_edit(Path(config.plan)).scaled(config.strength)
        if config.embedding != "auto":
            edit = replace(edit, embedding=resolve_embedding(config.embedding, edit.same_everywhere(), folder.tied))
        return replace(edit, keep_norms=True) if config.norms == "keep" else edit
    direction = load_direction(Path(str(config.direction)))
    return edit_from_direction(direction, folder.layers, config.strength, config.embedding, folder.tied, config.norms == "keep")
