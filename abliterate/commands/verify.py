"""Derive the proof of an edited checkpoint again."""

from __future__ import annotations

from pathlib import Path

from abliterate.checkpoint.checked import checked
from abliterate.config import VerifyConfig


def verify(config: VerifyConfig, checkpoint: Path) -> str:
    """Derive the proof of an edited checkpoint (or of the one in a run's folder) again. Raises CheckError with the first difference."""
    return checked(config, checkpoint)
