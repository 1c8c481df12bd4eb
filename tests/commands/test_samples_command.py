"""``--samples`` from the command line to the report: rates of greedy replies alone, resumed, rendered again, refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abliterate.cli.main import main
from abliterate.replies.transcripts import read
from abliterate.report.provenance import missing
from abliterate.report.tree.report import Report

Tiny = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
HOSTILE = "<script>alert(1)</script>\u202e"


@pytest.fixture
def asked(tmp_path: Path) -> str:
    """Prompts of which half list facts; a fact is hostile."""
    rows = [
        {"id": f"q{i}", "text": f"Tell of matter {i}", "topic": f"t{i // 2}", **({"facts": [f"fact {i}", HOSTILE]} if i % 2 else {})}
        for i in range(8)
    ]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(tmp_path / "asked.jsonl")


def audit(model: Path, asked: str, out: Path, *more: str) -> int:
    return main(
        ["audit", "--model", str(model), "--prompts", asked, "--max-new-tokens", "6", "--batch-size", "3", *more, "--out", str(out)]
    )


def report_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return found


def test_every_figure_but_consistency_is_the_same_with_samples(tiny: Tiny, asked: str, tmp_path: Path) -> None:
    model = tiny(layers=2)
    assert audit(model, asked, tmp_path / "without") == audit(model, asked, tmp_path / "with", "--samples", "2") == 0
    without, both = report_of(tmp_path / "without"), report_of(tmp_path / "with")
    assert both["consistency"]["samples"] == 2 and without["consistency"] is None
    assert "consistency" in without["not_measured"] and "consistency" not in both["not_measured"]
    for part in ("sets", "by_topic", "tables", "against_control", "thought_by_answer", "keep_tests"):
        assert both[part] == without[part]
    assert len(read(tmp_path / "without" / "transcripts" / "base.jsonl")) == 8
    assert len(read(tmp_path / "with" / "transcripts" / "base.jsonl")) == 8 + 2 * 4
    assert any("--samples" in said for said in missing(Report.read(tmp_path / "without" / "report.json")))


def test_an_audit_whose_samples_are_cut_off_ends_as_without_the_cut(tiny: Tiny, asked: str, tmp_path: Path) -> None:
    model, out = tiny(layers=2), tmp_path / "out"
    assert audit(model, asked, out, "--samples", "2") == 0
    file, before = out / "transcripts" / "base.jsonl", report_of(out)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 3 // 4])
    (out / "report.json").unlink()
    assert audit(model, asked, out, "--samples", "2") == 0
    assert file.read_bytes() == whole
    assert report_of(out) | {"cost": None} == before | {"cost": None}


def test_a_report_is_rendered_again_with_its_samples_and_refused_without_them(
    tiny: Tiny, asked: str, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert audit(tiny(layers=2), asked, out, "--samples", "2") == 0
    before = report_of(out)
    assert main(["report", str(out)]) == 0
    assert report_of(out) | {"cost": None} == before | {"cost": None}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'id="consistency"' in page and HOSTILE not in page
    file = out / "transcripts" / "base.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    capsys.readouterr()
    assert main(["report", str(out)]) == 2
    assert "sampled replies are missing" in capsys.readouterr().err


def test_both_models_of_a_comparison_are_sampled(tiny: Tiny, asked: str, tmp_path: Path) -> None:
    one, other, out = tiny(layers=2), tiny(layers=2, seed=1), tmp_path / "out"
    flags = ["--prompts", asked, "--max-new-tokens", "4", "--samples", "1", "--seed", "7"]
    assert main(["compare", "--base", str(one), "--derived", str(other), *flags, "--out", str(out)]) == 0
    found = report_of(out)["consistency"]
    assert found["seed"] == 7 and {"base", "edited"} <= found["sets"]["asked"].keys()
    for which in ("base", "edited"):
        assert sum(t.sample for t in read(out / "transcripts" / f"{which}.jsonl")) == 4


@pytest.mark.parametrize("given", ["-1", "101", "many"])
def test_a_number_of_samples_that_cannot_be_is_refused(tiny: Tiny, asked: str, tmp_path: Path, capsys: Capture, given: str) -> None:
    assert audit(tiny(layers=1), asked, tmp_path / "out", "--samples", given) == 2
    assert "--samples" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_samples_of_prompts_without_facts_are_refused_before_anything_is_written(tiny: Tiny, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "plain.txt").write_text("Sing!\nDance!\n", encoding="utf-8")
    assert audit(tiny(layers=1), str(tmp_path / "plain.txt"), tmp_path / "out", "--samples", "2") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "facts" in said and not (tmp_path / "out").exists()


def test_a_finished_audit_is_not_resumed_with_another_number_of_samples(tiny: Tiny, asked: str, tmp_path: Path, capsys: Capture) -> None:
    model = tiny(layers=1)
    assert audit(model, asked, tmp_path / "out") == 0
    capsys.readouterr()
    assert audit(model, asked, tmp_path / "out", "--samples", "2") == 2
    assert "--samples" in capsys.readouterr().err
