"""Scores of lm-eval, by a stand-in that has its signature: its tasks need data from the Hub."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import save_tiny

from abliterate.cli.main import main
from abliterate.errors import InputError
from abliterate.measures.benchmarks import Harness, scores_of, side_by_side

RESULTS = {
    "arc_easy": {"alias": "arc_easy", "acc,none": 0.61, "acc_stderr,none": 0.01, "acc_norm,none": 0.58, "sample_len": 50},
    "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.02, "exact_match_stderr,strict-match": "N/A"},
    "mmlu": {"alias": "a group without figures of its own"},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of lm-eval; each next model scores a little less."""
    calls: list[dict[str, Any]] = []

    def simple_evaluate(model: str, model_args: dict[str, Any], tasks: list[str], device: str, batch_size: str) -> dict[str, Any]:
        calls.append({"model": model, **model_args, "tasks": tasks, "device": device, "batch_size": batch_size})
        if "unheard_of" in tasks:
            raise ValueError("Tasks not found: unheard_of\nTry `lm-eval --tasks list`")
        return {"results": {"arc_easy": {"acc,none": 0.61 - 0.01 * len(calls), "acc_stderr,none": 0.02}}}

    stand_in = types.ModuleType("lm_eval")
    stand_in.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", stand_in)
    return calls


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., list[str]]:
    words = ["stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror", "harbour", "lantern", "meadow"]
    flags: list[str] = []
    for role, text in {"target": "Burn the {}!", "baseline": "Draw the {}.", "harmless": "Name a {}"}.items():
        (tmp_path / f"{role}.txt").write_text("\n".join(text.format(w) for w in words) + "\n", encoding="utf-8")
        flags += [f"--{role}", str(tmp_path / f"{role}.txt")]
    fixed = ["run", "--model", str(save_tiny(tmp_path / "tiny", says="I won't.")), *flags, "--max-new-tokens", "4", "--candidates", "2"]
    return lambda *more: [*fixed, "--out", str(tmp_path / "run"), *more]


def test_figures_are_taken_with_their_filters_and_words_are_left_out() -> None:
    assert scores_of({"results": RESULTS}) == {
        "arc_easy": {"acc": 0.61, "acc_stderr": 0.01, "acc_norm": 0.58},
        "gsm8k": {"exact_match,strict-match": 0.02},
    }
    assert scores_of(None) == {}


def test_the_two_models_stand_side_by_side() -> None:
    found = side_by_side(["t"], {"t": {"acc": 0.5}, "u": {"acc": 0.4}}, {"t": {"acc": 0.45}})
    assert found.document()["tasks"] == {"t": {"acc": {"base": 0.5, "edited": 0.45}}, "u": {"acc": {"base": 0.4, "edited": None}}}


def test_a_run_scores_both_models_once(asked: list[dict[str, Any]], call: Callable[..., list[str]], tmp_path: Path) -> None:
    assert main(call("--lm-eval", "arc_easy")) == 0
    assert [Path(made["pretrained"]).name for made in asked] == ["tiny", "checkpoint"]
    assert {made["model"] for made in asked} == {"hf"} and asked[0]["tasks"] == ["arc_easy"] and asked[0]["dtype"] == "float32"
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["benchmarks"]["tasks"]["arc_easy"]["acc"] == {"base": 0.6, "edited": pytest.approx(0.59)}
    assert "benchmarks" not in report["not_measured"]
    assert main(call("--lm-eval", "arc_easy")) == 0
    assert len(asked) == 2
    assert main(["report", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8")) == report


def test_without_it_the_report_says_that_nothing_was_measured(call: Callable[..., list[str]], tmp_path: Path) -> None:
    assert main(call()) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["benchmarks"] is None and "benchmarks" in report["not_measured"]


def test_a_missing_harness_is_said_before_anything_runs(
    call: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abliterate.measures.benchmarks.importlib.util.find_spec", lambda name: None)
    assert main(call("--lm-eval", "mmlu")) == 2
    assert "pip install 'abliterate[lm-eval]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_the_harness_refuses_is_one_line(asked: list[dict[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"--lm-eval unheard_of: lm-eval failed \(.*Tasks not found: unheard_of\)"):
        Harness(["unheard_of"], "float32", "cpu").measure(Path("m"))
