"""The single-stage commands on tiny models: audit, collect, edit, plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from abliterate.cli import main
from abliterate.model.hooks import ablated
from abliterate.model.load import load_model
from abliterate.model.plan import load_plan, plan_from_direction
from abliterate.model.template import encode

Tiny = Callable[..., Path]
Direction = Callable[[int], torch.Tensor]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "asked.txt"
    path.write_text("".join(f"Tell me about number {n}.\n" for n in range(9)), encoding="utf-8")
    return path


def test_audit_asks_every_prompt_of_a_file_and_edits_nothing(tiny: Tiny, prompts: Path, tmp_path: Path) -> None:
    model, out = tiny(), tmp_path / "audit"
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    assert main(["audit", "--model", str(model), "--prompts", str(prompts), "--max-new-tokens", "4", "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["sets"]["asked"]["n"] == 9
    assert report["sets"]["asked"]["edited"] is None and report["edit"] is None
    assert {"edit", "drift", "sets.asked.edited"} <= set(report["not_measured"])
    assert not (out / "checkpoint").exists()
    assert {p.name: p.read_bytes() for p in model.iterdir()} == before


def test_audit_asks_the_test_split_of_a_bundled_set(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    call = ["audit", "--model", str(tiny()), "--prompts", "censorship", "--limit", "6", "--max-new-tokens", "2", "--out", str(out)]
    assert main(call) == 0
    rows = [json.loads(line) for line in (out / "transcripts" / "base.jsonl").read_text(encoding="utf-8").splitlines()]
    entry = json.loads((out / "report.json").read_text(encoding="utf-8"))["sets"]["censorship"]
    assert len(rows) == 6 and {r["lang"] for r in rows} == {"en", "zh"} == set(entry["by_lang"])
    assert entry["base"]["substance"]["n"] == 6


def test_collect_writes_the_statistics_of_the_contract(tiny: Tiny, prompts: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("".join(f"Sing about letter {c}.\n" for c in "abcdefg"), encoding="utf-8")
    out = tmp_path / "stats.safetensors"
    call = ["collect", "--model", str(tiny()), "--target", str(prompts), "--baseline", str(other), "--positions", "2", "--out", str(out)]
    assert main(call) == 0
    tensors = load_file(out)
    assert tensors["target_mean"].shape == (2, 5, 32) and tensors["target_mean"].dtype == torch.float32
    assert tensors["target_last"].shape == (9, 5, 32) and tensors["baseline_last"].shape == (7, 5, 32)
    assert torch.allclose(tensors["target_last"].mean(0), tensors["target_mean"][0], atol=1e-5)
    assert torch.allclose(tensors["target_last"].square().mean(0), tensors["target_second_moment"][0], rtol=1e-4)
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["positions"]) == [-1, -2]
        assert set(json.loads(file.metadata()["prompts"])) == {"asked", "other"}


def test_collect_does_not_overwrite(tiny: Tiny, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "stats.safetensors"
    out.write_text("precious")
    assert main(["collect", "--model", str(tiny()), "--target", str(prompts), "--out", str(out)]) == 2
    assert out.read_text() == "precious"


@pytest.mark.parametrize("shape", ["one", "per layer"])
def test_edit_with_a_direction_file_equals_the_hooks(
    shape: str, tiny: Tiny, tmp_path: Path, unit_direction: Direction, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file, out = tiny("qwen2"), tmp_path / "r.safetensors", tmp_path / "edited"
    direction = unit_direction(32) if shape == "one" else torch.stack([unit_direction(32, seed) for seed in range(4)])
    save_file({"direction": direction * 7}, file)
    assert main(["edit", "--model", str(model), "--direction", str(file), "--out", str(out)]) == 0
    base, edited = load_model(model), load_model(out)
    ids = torch.tensor(encode(base.tokenizer, ["What is this?"]))
    with torch.inference_mode(), ablated(base, plan_from_direction(direction, 4, tied=base.folder.tied)):
        expected = base.module(ids).logits
    assert torch.allclose(edited.module(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_edit_with_a_saved_plan_gives_the_same_bytes(tiny: Tiny, tmp_path: Path, unit_direction: Direction) -> None:
    from abliterate.model.plan import save_plan

    model = tiny()
    save_file({"direction": unit_direction(32)}, tmp_path / "r.safetensors")
    save_plan(plan_from_direction(unit_direction(32), 4), tmp_path / "plan.safetensors")
    assert load_plan(tmp_path / "plan.safetensors").embedding == "edit"
    for flag, file, out in (("--direction", "r", "a"), ("--plan", "plan", "b")):
        assert main(["edit", "--model", str(model), flag, str(tmp_path / f"{file}.safetensors"), "--out", str(tmp_path / out)]) == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("given", [[], ["--direction", "r", "--plan", "p"]])
def test_edit_wants_one_of_direction_and_plan(given: list[str], tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", "--model", str(tiny()), *given, "--out", str(tmp_path / "x")]) == 2
    assert "either --direction FILE or --plan FILE" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_plan_reads_headers_only(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny(shards="20KB")
    for shard in model.glob("*.safetensors"):  # overwrite every weight by holes: only the headers can be read with sense
        size = shard.stat().st_size
        header = int.from_bytes(shard.read_bytes()[:8], "little") + 8
        shard.write_bytes(shard.read_bytes()[:header] + b"\xff" * (size - header))
    assert main(["plan", "--model", str(model)]) == 0
    printed = capsys.readouterr().out
    assert "8 tensors" in printed and "4 blocks of width 32" in printed
    assert len(printed.splitlines()) == 8


def test_plan_of_an_unknown_architecture_is_bad_input(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "gemma2"}))
    assert main(["plan", "--model", str(model)]) == 2
    assert "gemma2" in capsys.readouterr().err
