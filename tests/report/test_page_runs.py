"""``report --compare``: several runs side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from reports import Made, audit_report, changed, run_report, weights_report

from abliterate.cli.main import main
from abliterate.files import write_json
from abliterate.report.compare_runs import runs_page

Capture = pytest.CaptureFixture[str]


def folder_of(place: Path, made: Made) -> Path:
    place.mkdir(parents=True)
    write_json(made.report, place / "report.json")
    return place


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        folder_of(tmp_path / "one", run_report()),
        folder_of(tmp_path / "two", run_report()),
        folder_of(tmp_path / "audit", audit_report()),
    ]


def test_runs_stand_side_by_side_in_one_file(runs: list[Path], tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "new" / "all.html"
    assert main(["report", str(runs[0]), "--compare", *map(str, runs[1:]), "--out", str(out)]) == 0
    assert "3 runs side by side" in capsys.readouterr().out
    page = out.read_text(encoding="utf-8")
    assert "3 runs side by side: one, two, audit." in page and page.count("<svg") > 10
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")


def test_the_first_run_may_be_one_of_those_compared(runs: list[Path], tmp_path: Path) -> None:
    assert main(["report", "--compare", *map(str, runs), "--out", str(tmp_path / "all.html")]) == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--compare", "{one}"], "--out FILE.html"),
        (["--compare", "{one}", "--out", "{new}"], "two runs or more"),
        (["{one}", "--compare", "{one}", "--out", "{new}"], "given twice"),
        (["{one}", "--compare", "{two}", "--out", "{one}/report.json"], "already there"),
        (["{one}", "--compare", "{empty}", "--out", "{new}"], "no report.json"),
        (["{one}", "--compare", "{broken}", "--out", "{new}"], "not a report of abliterate"),
        (["{one}", "--out", "{new}"], "--out goes with --compare"),
        ([], "give the folder of a run"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(
    arguments: list[str], reason: str, runs: list[Path], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.json").write_text('{"schema": "other"}')
    places = {name: str(tmp_path / name) for name in ("one", "two", "empty", "broken")} | {"new": str(tmp_path / "new.html")}
    assert main(["report", *(argument.format(**places) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
    assert not (tmp_path / "new.html").exists()


def test_other_prompts_under_one_name_are_said_to_be_not_comparable() -> None:
    one, two = run_report().report, run_report().report
    assert "Not comparable" not in runs_page({"one": one, "two": two})
    other = changed(two, {"run.prompts.hot.sha256": "00" * 32})
    assert "Not comparable: the prompts of hot differ between the runs." in runs_page({"one": one, "two": other})


def test_settings_that_differ_are_listed_and_no_others() -> None:
    one, two = run_report().report, changed(run_report().report, {"run.settings.limit": 40})
    page = runs_page({"one": one, "two": two})
    assert '<th scope="row"><code>limit</code></th><td>–</td><td>40</td>' in page
    assert "<code>max_new_tokens</code>" not in page


def test_a_comparison_of_weights_and_hostile_names_do_no_harm() -> None:
    name = "<script>alert(1)</script>"
    page = runs_page({name: weights_report().report, "two": audit_report().report})
    assert name not in page and "weights: directional" in page


def test_the_page_does_not_say_where_the_models_lie() -> None:
    one, two = run_report().report, weights_report().report
    place = "/home/alice/clients/x/model"
    one = changed(one, {"run.settings.model": place, "run.model_path": place})
    base = "/home/alice/base"
    two = changed(two, {"run.settings.base": base, "run.settings.derived": place, "run.model_path": base})
    page = runs_page({"one": one, "two": two})
    assert "alice" not in page and "--derived model" in page
    assert "<td>model</td>" in page and "<td>model compared with base</td>" in page


def test_the_edit_of_a_run_is_the_one_that_was_taken() -> None:
    one, two = run_report().report, run_report().report
    one = changed(one, {"selection.name": "tuned, step 4", "keep_tests.0.margin": 0.025})
    page = runs_page({"one": one, "two": two})
    assert "<td>tuned, step 4</td>" in page and "did not fall by more than 2.5 points" in page


def test_runs_of_one_model_each_have_one_mark_and_no_before_and_after() -> None:
    page = runs_page({"one": audit_report().report, "two": audit_report().report})
    assert "the model</span>" in page and "(before)" not in page and "(after)" not in page and '<circle class="base"' not in page


def test_an_unedited_model_beside_edited_ones_is_drawn_as_a_base() -> None:
    one, two = run_report().report, audit_report().report
    page = runs_page({"one": one, "two": two})
    assert "base (before), or the only model" in page and "edited (after)" in page
    drawn = [part for part in page.split("<svg")[1:] if "<title>two, " in part]
    assert drawn and all('circle class="base"' in part and 'circle class="edited"' not in part for part in drawn)
