"""The whole pipeline on a tiny random model: files, resume after kills, interrupts, settings, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from abliterate.checkpoint.sums import check_sums
from abliterate.choice import select as selection
from abliterate.choice import tuned
from abliterate.cli.main import main
from abliterate.compute.memory import Holding
from abliterate.outcomes.records import OUTCOMES

Tiny = Callable[..., Path]


def write_prompts(path: Path, texts: list[str]) -> Path:
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, str]:
    """Three small user files and one of ordinary prompts."""
    words = ["stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror", "harbour", "lantern", "meadow"]
    return {
        "target": str(write_prompts(tmp_path / "bad.txt", [f"Burn the {w}!" for w in words])),
        "baseline": str(write_prompts(tmp_path / "good.txt", [f"Draw the {w}." for w in words])),
        "keep": str(write_prompts(tmp_path / "kept.txt", [f"Steal the {w}?" for w in words])),
        "harmless": str(write_prompts(tmp_path / "plain.txt", [f"Name a {w}" for w in words])),
    }


def arguments(model: Path, sets: dict[str, str], out: Path) -> list[str]:
    flags = [part for role, path in sets.items() for part in (f"--{role}", path)]
    return ["run", "--model", str(model), *flags, "--max-new-tokens", "4", "--batch-size", "4", "--candidates", "2", "--out", str(out)]


def without_cost(report: Path) -> dict[str, object]:
    document = json.loads(report.read_text(encoding="utf-8"))
    del document["cost"]
    return document


def test_a_run_leaves_every_file_of_the_contract(refuser: Tiny, sets: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(arguments(refuser(), sets, out)) == 0
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert {"run.json", "activations.safetensors", "directions.safetensors", "selection.json", "report.json", "report.html"} <= names
    assert {"transcripts/base.jsonl", "transcripts/edited.jsonl", "checkpoint/README.md", "checkpoint/abliteration.json"} <= names
    assert not [n for n in names if "partial" in n]
    AutoModelForCausalLM.from_pretrained(out / "checkpoint")
    assert check_sums(out / "checkpoint") == sum(n.startswith("checkpoint/") for n in names) - 1


def test_the_report_holds_the_keys_of_the_contract(refuser: Tiny, sets: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(arguments(refuser(), sets, out)) == 0
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["schema"] == "abliterate/report/1"
    assert {k: v["role"] for k, v in report["sets"].items()} == {"bad": "target", "good": "baseline", "kept": "keep", "plain": "harmless"}
    for entry in report["sets"].values():
        assert entry["n"] == entry["base"]["refused"]["n"] == sum(entry["base"]["outcomes"].values())
        assert entry["paired"]["withheld"].keys() == {"base_only", "edited_only", "mcnemar_p"}
    drift = report["drift"]
    assert all(drift[key] >= 0 for key in ("kl_first_token", "kl_sequence", "ce_base", "ce_edited", "own_base", "own_edited"))
    assert drift["own_base"] <= drift["own_edited"] and not list((out).glob("drift-base*"))
    assert report["keep_test"]["set"] == "kept"
    controls = report["controls"]
    assert (controls["set"], controls["n"], controls["seeds"]) == (["bad"], report["sets"]["bad"]["n"], [0, 1, 2])
    assert controls["n_withheld"] == report["sets"]["bad"]["base"]["withheld"]["k"] and len(controls["kl_first_token"]["random"]) == 3
    assert "recovery" in report["not_measured"] and "drift.kl_sequence" not in report["not_measured"]
    assert report["cost"]["peak_rss_bytes"] > 10**7 and {"activations", "selection", "edit"} <= report["cost"]["seconds"].keys()


def test_a_run_that_removes_nothing_ends_with_a_report_of_no_change(
    refuser: Tiny, sets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abliterate.choice.tuning.replies.WITHHELD", frozenset(OUTCOMES))  # so that there is something to tune
    out = tmp_path / "run"
    assert main([*arguments(refuser(), sets, out), "--strength", "0", "--tune-steps", "2"]) == 0
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["selection"]["strength"] == 0 and report["edit"]["tensors"] == 0
    assert report["drift"]["kl_first_token"] == pytest.approx(0, abs=1e-6)
    assert any("all strengths were zero" in note for note in report["selection"]["relaxed"])


@pytest.mark.parametrize(("flag", "given"), [("--max-kl", "inf"), ("--margin", "0"), ("--margin", "1"), ("--limit", "1")])
def test_settings_beyond_their_ends_are_one_line(
    refuser: Tiny, sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, given: str
) -> None:
    assert main([*arguments(refuser(), sets, tmp_path / "run"), flag, given]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"abliterate: {flag} {given}: ")
    assert not (tmp_path / "run").exists()


def test_the_activations_file_follows_the_contract(refuser: Tiny, sets: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main([*arguments(refuser(), sets, out), "--positions", "3"]) == 0
    with safe_open(out / "activations.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["positions"]) == [-1, -2, -3]
        assert list(file.get_slice("target_mean").get_shape()) == [3, 5, 32]
        assert list(file.get_slice("target_last").get_shape())[1:] == [5, 32]
        assert {"baseline_mean", "keep_mean", "keep_last", "harmless_mean", "target_second_moment"} <= set(file.keys())


KILLS = (
    "_activations",
    "select",
    "respond:edited",
    "random_control",
    "_edit",
    "drift_base",
    "drift_edited",
    "report_document",
    "write_report",
)
DRIVER = """
import os, signal, sys
import abliterate.commands.run as pipeline
where, number = sys.argv[1], getattr(signal, sys.argv[2])
name, _, which = where.partition(":")
real = getattr(pipeline, name)
def die(*args, **options):
    if not which or which in args:
        os.kill(os.getpid(), number)
    return real(*args, **options)
setattr(pipeline, name, die)
from abliterate.cli.main import main
sys.exit(main(sys.argv[3:]))
"""


def killed(where: str, how: str, call: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DRIVER, where, how, *call], capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}
    )


def test_a_run_killed_at_every_stage_ends_with_the_same_report(refuser: Tiny, sets: dict[str, str], tmp_path: Path) -> None:
    model = refuser()
    assert main(arguments(model, sets, tmp_path / "whole")) == 0
    call = arguments(model, sets, tmp_path / "killed")
    for where in KILLS:
        assert killed(where, "SIGKILL", call).returncode == -signal.SIGKILL
        assert not (tmp_path / "killed" / "report.json").exists()
    assert main(call) == 0
    assert without_cost(tmp_path / "killed" / "report.json") == without_cost(tmp_path / "whole" / "report.json")


def test_a_run_killed_while_it_answers_goes_on_with_the_next_batch(refuser: Tiny, sets: dict[str, str], tmp_path: Path) -> None:
    model = refuser()
    assert main(arguments(model, sets, tmp_path / "whole")) == 0
    out = tmp_path / "cut"
    assert main(arguments(model, sets, out)) == 0
    transcripts = out / "transcripts" / "edited.jsonl"
    whole = transcripts.read_bytes()
    transcripts.write_bytes(whole[: len(whole) * 2 // 3])
    for name in ("report.json", "report.html", "drift.json"):
        (out / name).unlink()
    assert main(arguments(model, sets, out)) == 0
    assert transcripts.read_bytes() == whole
    assert without_cost(out / "report.json") == without_cost(tmp_path / "whole" / "report.json")


def test_an_interrupt_exits_130_and_says_how_to_go_on(refuser: Tiny, sets: dict[str, str], tmp_path: Path) -> None:
    call = arguments(refuser(), sets, tmp_path / "run")
    done = killed("select", "SIGINT", call)
    assert done.returncode == 130
    assert "run the same command again to resume" in done.stderr.strip().splitlines()[-1] and "Traceback" not in done.stderr
    assert main(call) == 0


def test_a_run_that_is_interrupted_in_tuning_goes_on_from_its_last_look(
    refuser: Tiny, sets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abliterate.choice.tuning.replies.WITHHELD", frozenset(OUTCOMES))  # whatever the random model says
    model, out = refuser(), tmp_path / "run"
    assert main([*arguments(model, sets, tmp_path / "whole"), "--tune-steps", "2"]) == 0
    call = [*arguments(model, sets, out), "--tune-steps", "2"]
    real, measured = selection.measure, []

    def measure(*given: Any) -> Any:
        measured.append(given)
        if len(measured) == 3:  # the shortlist, a look, and the next look
            raise KeyboardInterrupt
        return real(*given)

    for module in (selection, tuned):
        monkeypatch.setattr(module, "measure", measure)
    assert main(call) == 130
    heard = {f"{what}-{split}" for what in ("replies", "predictions") for split in ("train", "val")}
    edited = {"heard-train-0", "heard-val-0"}  # the first phase has ended
    assert {p.name for p in (out / ".selection").iterdir()} == heard | edited | {"first-order", "scores", "points", "starts", "descent"}
    (out / ".selection" / "points").write_bytes(b"broken")
    assert main(call) == 0
    assert len(measured) == 3 + 1 + 2  # the shortlist once more, and the looks that were left
    assert not (out / ".selection").exists() and not (tmp_path / "whole" / ".selection").exists()
    edit, whole = (load_file(folder / "plan.safetensors") for folder in (out, tmp_path / "whole"))
    assert torch.equal(edit["direction"], whole["direction"]) and torch.equal(edit["strength"], whole["strength"])
    assert without_cost(out / "report.json") == without_cost(tmp_path / "whole" / "report.json")


def test_a_second_call_changes_nothing(refuser: Tiny, sets: dict[str, str], tmp_path: Path) -> None:
    call = arguments(refuser(), sets, tmp_path / "run")
    assert main(call) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert main(call) == 0
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_run_folder_of_other_settings_is_refused_by_the_setting(
    refuser: Tiny, sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = arguments(refuser(), sets, tmp_path / "run")
    assert main(call) == 0
    capsys.readouterr()
    assert main([*call, "--max-kl", "0.3"]) == 2
    assert "--max-kl" in one_line(capsys)


def test_other_prompts_under_the_same_name_are_refused(
    refuser: Tiny, sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = arguments(refuser(), sets, tmp_path / "run")
    assert main(call) == 0
    with Path(sets["keep"]).open("a", encoding="utf-8") as file:
        file.write("One more?\n")
    capsys.readouterr()
    assert main(call) == 2
    assert "kept" in one_line(capsys)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that bad input gets on stderr."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("abliterate: ")]
    assert len(lines) == 1
    return lines[0]


def test_a_missing_model_folder_is_bad_input(sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "nowhere", sets, tmp_path / "run")) == 2
    assert "nowhere" in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_model_without_chat_template_is_bad_input(
    refuser: Tiny, sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = refuser()
    (model / "chat_template.jinja").unlink()
    assert main(arguments(model, sets, tmp_path / "run")) == 2
    assert "chat template" in one_line(capsys)


def test_a_truncated_shard_is_bad_input(refuser: Tiny, sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = refuser(shards="20KB")
    shard = sorted(model.glob("*.safetensors"))[2]
    shard.write_bytes(shard.read_bytes()[:-7])
    assert main(arguments(model, sets, tmp_path / "run")) == 2
    line = one_line(capsys)
    assert shard.name in line and "truncated" in line
    assert not (tmp_path / "run").exists()


def test_target_equal_to_baseline_is_bad_input(
    refuser: Tiny, sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(refuser(), {**sets, "baseline": sets["target"]}, tmp_path / "run")) == 2
    assert "no direction" in one_line(capsys)


def test_the_same_prompts_under_two_names_have_no_direction(
    refuser: Tiny, sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_bytes(Path(sets["target"]).read_bytes())
    assert main(arguments(refuser(), {**sets, "baseline": str(copy)}, tmp_path / "run")) == 2
    assert "no direction" in one_line(capsys)


def test_a_train_prompt_in_a_test_split_is_bad_input(
    refuser: Tiny, sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": f"Row {i}", "split": s} for i, s in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 4)]
    rows[9]["text"] = "row  0"
    leaky = tmp_path / "leaky.jsonl"
    leaky.write_text("".join(json.dumps(r) + "\n" for r in [*rows, {"text": "Extra", "split": "test"}]), encoding="utf-8")
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "Row 1", "split": "test"}) + "\n" + json.dumps({"text": "x", "split": "train"}) + "\n")
    assert main(arguments(refuser(), {**sets, "target": str(leaky), "keep": str(other)}, tmp_path / "run")) == 2
    assert "would prove nothing" in one_line(capsys)


def test_an_output_folder_that_holds_something_is_refused(
    refuser: Tiny, sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "full"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert main(arguments(refuser(), sets, out)) == 2
    assert "not empty" in one_line(capsys)
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


def test_an_output_inside_the_model_folder_is_refused(
    refuser: Tiny, sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = refuser()
    before = sorted(p.name for p in model.iterdir())
    assert main(arguments(model, sets, model / "run")) == 2
    assert "inside the model's folder" in one_line(capsys)
    assert sorted(p.name for p in model.iterdir()) == before


def test_a_disk_that_is_full_leaves_no_checkpoint(
    refuser: Tiny, sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    call = arguments(refuser(), sets, tmp_path / "run")
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    assert main(call) == 2
    assert "free" in one_line(capsys)
    assert not (tmp_path / "run" / "checkpoint").exists() and not list((tmp_path / "run").glob(".checkpoint*"))
    monkeypatch.undo()
    assert main(call) == 0


def test_an_empty_prompt_file_is_bad_input(refuser: Tiny, sets: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = write_prompts(tmp_path / "empty.txt", ["", "  "])
    assert main(arguments(refuser(), {**sets, "target": str(empty)}, tmp_path / "run")) == 2
    assert "empty.txt" in one_line(capsys)


def test_several_sets_a_role_follow_one_flag(refuser: Tiny, sets: dict[str, str], tmp_path: Path) -> None:
    more = write_prompts(tmp_path / "more.txt", [f"Break {n} plates" for n in range(8)])
    call = arguments(refuser(), sets, tmp_path / "run")
    at = call.index(sets["target"])
    assert main([*call[: at + 1], str(more), *call[at + 1 :]]) == 0
    roles = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))["sets"]
    assert roles["more"]["role"] == roles["bad"]["role"] == "target"


def test_a_run_block_by_block_gives_the_report_of_one_in_memory(
    refuser: Tiny, sets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = refuser(shards="20KB")
    untuned = ["--tune", "off"]  # gradients need the model whole
    assert main([*arguments(model, sets, tmp_path / "whole"), *untuned]) == 0
    read = lambda *_: Holding(1, torch.float32, whole=False, peak=0, tokens=100)  # noqa: E731
    monkeypatch.setattr("abliterate.compute.session.holding_of", read)
    assert main([*arguments(model, sets, tmp_path / "swept"), *untuned]) == 0
    whole, swept = (json.loads((tmp_path / run / "report.json").read_text(encoding="utf-8")) for run in ("whole", "swept"))
    assert whole["sets"] == swept["sets"]
    assert swept["drift"]["kl_first_token"] == pytest.approx(whole["drift"]["kl_first_token"], abs=1e-4)
    assert (whole["run"]["resolved"]["held"], swept["run"]["resolved"]["held"]) == ("whole", "block by block")
    for name in ("transcripts/base.jsonl", "transcripts/edited.jsonl"):
        one, other = (sorted((tmp_path / run / name).read_text(encoding="utf-8").splitlines()) for run in ("whole", "swept"))
        assert one == other
