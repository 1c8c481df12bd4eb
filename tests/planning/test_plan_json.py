"""The figures of a plan as a file, as other programs read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from abliterate.cli import main


def test_all_figures_are_written_as_json(tiny: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert main(["plan", "--model", str(tiny()), "--limit", "8", "--json", str(file)]) == 0
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert figures["edits"]["kinds"] == {"attention": 4, "mlp": 4}
    assert {stage["stage"] for stage in figures["stages"]} >= {"collection", "selection", "edit", "evaluation"}
