"""The figures of a plan as a file, as other programs read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from abliterate.cli.main import main


def test_where_a_run_would_tune_the_plan_says_what_it_saves_not_to(tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tiny())
    assert main(["plan", "--model", model, "--limit", "40", "--tune-steps", "100"]) == 0
    assert "cheaper      --tune off (" in capsys.readouterr().out
    assert main(["plan", "--model", model, "--limit", "40", "--tune", "off"]) == 0
    assert "--tune off" not in capsys.readouterr().out


def test_all_figures_are_written_as_json(tiny: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert main(["plan", "--model", str(tiny()), "--limit", "8", "--json", str(file)]) == 0
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert figures["edits"]["kinds"] == {"attention": 4, "mlp": 4}
    assert {stage["stage"] for stage in figures["stages"]} >= {"collection", "selection", "edit", "evaluation"}
    written = next(stage["write_bytes"] for stage in figures["stages"] if stage["stage"] == "edit")
    assert figures["edits"]["checkpoint"] == written > figures["edits"]["adapter"] > 0
    assert "outputs" not in figures["edits"]


def test_the_plan_names_the_formats_that_take_less(tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(tiny()), "--limit", "8"]) == 0
    shown = capsys.readouterr().out
    assert "edit --plan RUN/plan.safetensors --as adapter: writes " in shown and "--as checkpoint" not in shown
