"""Verify an edited checkpoint from the user's settings, with progress."""

from __future__ import annotations

from pathlib import Path

from abliterate.checkpoint.verify import steps, verify
from abliterate.config import VerifyConfig
from abliterate.model.agreement import open_checkpoint
from abliterate.model.folder import open_folder
from abliterate.model.source import edited_folder, resolve_model
from abliterate.terminal.progress import stage


def checked(config: VerifyConfig, checkpoint: Path) -> str:
    """Verify the proof of an edited checkpoint, or of the one in a run folder. Raises CheckError with the first difference."""
    checkpoint = edited_folder(checkpoint)
    folder = open_folder(checkpoint, config.trust_remote_code, config.layout_file)
    base = None
    if config.base is not None:
        base, _ = open_checkpoint(resolve_model(config.base, config.revision).path, config.trust_remote_code, config.layout_file)
    with stage("tensors checked", steps(folder, base is not None)) as advance:
        measured, compared = verify(folder, base, advance)
    rest = f", all {compared} compared with the base" if base is not None else "; the others were not checked (use --base)"
    return f"{checkpoint}: {measured} edited tensors match the proof{rest}"
