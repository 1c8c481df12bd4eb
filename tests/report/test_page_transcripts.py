"""``--transcripts``: how much of each reply the page shows, set for a run or for writing its report again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import save_tiny
from reports import directions, judged, reported, run_record

from abliterate.cli.main import main
from abliterate.files import write_json
from abliterate.report.write import write_report
from abliterate.runs.folder import DIRECTIONS, RunFolder


def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("transcripts") / "model", says="I won't.")


def test_an_audit_shows_as_much_as_it_is_told_and_its_report_as_much_as_that_is(model: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "asked.txt", tmp_path / "audit"
    prompts.write_text("What is the colour of the sky, said plainly?\nName a river.\nName a hill.\nName a lake.\n", encoding="utf-8")
    asked = ["audit", "--model", str(model), "--prompts", str(prompts), "--max-new-tokens", "2", "--out", str(out)]
    assert main([*asked, "--transcripts", "none"]) == 0
    assert "colour of the sky" not in page(out)
    assert main(["report", str(out)]) == 0
    assert "colour of the sky" not in page(out)  # the run's setting
    assert main(["report", str(out), "--transcripts", "full"]) == 0
    assert "colour of the sky" in page(out) and "Whole replies" in page(out)
    assert main(asked) == 0  # it changes only the page, so the run can be resumed


def test_what_is_no_kind_of_transcripts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path), "--transcripts", "some"]) == 2
    assert "--transcripts" in capsys.readouterr().err


def test_how_good_the_directions_are_goes_into_the_report_and_the_page(tmp_path: Path) -> None:
    record = {**run_record(), "settings": {"model": "m"}}
    write_json(record, tmp_path / "run.json")
    base = {"hot": judged("hot", ["Paris."] * 4)}
    report = reported(record, {"hot": "audited"}, base, None, None, None, None, 0.05)
    plain = write_report(RunFolder(tmp_path), report, base, None, None)
    assert plain.directions is None and "Separation by layer" not in page(tmp_path)
    write_json(directions(), tmp_path / DIRECTIONS)
    write_report(RunFolder(tmp_path), report, base, None, None)
    assert json.loads((tmp_path / "report.json").read_text())["directions"] == directions()
    assert "Separation by layer and position" in page(tmp_path)
