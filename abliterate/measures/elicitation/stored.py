"""The scores that a run folder holds."""

from __future__ import annotations

from pathlib import Path

from abliterate.measures.parts.elicitation import ElicitedScores
from abliterate.measures.parts.sets import SIDES, Side
from abliterate.runs.folder import ELICITATION


def stored_scores(path: Path) -> dict[Side, ElicitedScores]:
    """The scores of known and false facts in a run folder, by model; empty if it has none."""
    return {side: ElicitedScores.read(path / ELICITATION[side]) for side in SIDES if (path / ELICITATION[side]).is_file()}
