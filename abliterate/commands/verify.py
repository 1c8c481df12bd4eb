"""Derive the proof of an edited checkpoint again."""

from __future__ import annotations

from pathlib import Path

from abliterate.checkpoint.formats.table import TABLE, format_in
from abliterate.config import VerifyConfig
from abliterate.errors import InputError


def verify(config: VerifyConfig, checkpoint: Path) -> str:
    """Derive the proof of an edited checkpoint (or of the one in a run's folder) again. Raises CheckError with the first difference."""
    name = format_in(checkpoint) or "checkpoint"
    again = TABLE[name].verify
    if again is None:
        raise InputError(
            f"{checkpoint}: an output of edit --as {name}, which holds no proof; make the edit as a checkpoint and verify that"
        )
    return again(config, checkpoint)
