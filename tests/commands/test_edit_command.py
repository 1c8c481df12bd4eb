"""The single-stage commands on tiny models: audit, collect, edit, verify, plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from packed import save_mxfp4
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from abliterate.cli.main import main
from abliterate.compute.hooks import ablated
from abliterate.compute.whole.model import load_model
from abliterate.model.chat.template import encode
from abliterate.model.edit import edit_from_direction, load_edit, save_edit

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


@pytest.mark.parametrize("split", [[], ["--split", "all"]], ids=["test", "all"])
def test_audit_asks_a_file_of_one_prompt(tiny: Tiny, tmp_path: Path, split: list[str]) -> None:
    (tmp_path / "one.txt").write_text("Tell me about number 7.\n", encoding="utf-8")
    call = ["audit", "--model", str(tiny()), "--prompts", str(tmp_path / "one.txt"), *split, "--max-new-tokens", "2"]
    assert main([*call, "--out", str(tmp_path / "o")]) == 0
    assert json.loads((tmp_path / "o" / "report.json").read_text(encoding="utf-8"))["sets"]["one"]["n"] == 1


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
    with torch.inference_mode(), ablated(base, edit_from_direction(direction, 4, tied=base.folder.tied)):
        expected = base.module(ids).logits
    assert torch.allclose(edited.module(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_edit_with_a_saved_plan_gives_the_same_bytes(tiny: Tiny, tmp_path: Path, unit_direction: Direction) -> None:
    model = tiny()
    save_file({"direction": unit_direction(32)}, tmp_path / "r.safetensors")
    save_edit(edit_from_direction(unit_direction(32), 4), tmp_path / "plan.safetensors")
    assert load_edit(tmp_path / "plan.safetensors").embedding == "edit"
    for flag, file, out in (("--direction", "r", "a"), ("--plan", "plan", "b")):
        assert main(["edit", "--model", str(model), flag, str(tmp_path / f"{file}.safetensors"), "--out", str(tmp_path / out)]) == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_the_flags_of_the_edit_win_over_what_a_plan_says(tiny: Tiny, tmp_path: Path, unit_direction: Direction) -> None:
    model, direction = tiny(), ["--direction", str(tmp_path / "r")]
    save_file({"direction": unit_direction(32)}, tmp_path / "r")
    save_edit(edit_from_direction(unit_direction(32), 4, policy="edit"), tmp_path / "plan")
    flags = ["--embedding", "skip", "--norms", "keep", "--strength", "0.5"]
    for given, out in ((direction, "a"), (["--plan", str(tmp_path / "plan")], "b")):
        assert main(["edit", "--model", str(model), *given, *flags, "--out", str(tmp_path / out)]) == 0
    edit = load_edit(tmp_path / "b" / "abliteration.plan")
    assert (edit.embedding, edit.keep_norms, edit.embedding_strength) == ("skip", True, 0.5)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_a_plan_keeps_its_own_policies_where_no_flag_says_otherwise(tiny: Tiny, tmp_path: Path, unit_direction: Direction) -> None:
    save_edit(edit_from_direction(unit_direction(32), 4, policy="skip", keep_norms=True), tmp_path / "plan")
    assert main(["edit", "--model", str(tiny()), "--plan", str(tmp_path / "plan"), "--out", str(tmp_path / "e")]) == 0
    edit = load_edit(tmp_path / "e" / "abliteration.plan")
    assert (edit.embedding, edit.keep_norms) == ("skip", True)


def test_a_plan_of_several_directions_can_not_edit_the_embedding(
    tiny: Tiny, tmp_path: Path, unit_direction: Direction, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny()
    save_edit(edit_from_direction(torch.stack([unit_direction(32, seed) for seed in range(4)]), 4), tmp_path / "plan")
    capsys.readouterr()
    call = ["edit", "--model", str(model), "--plan", str(tmp_path / "plan"), "--embedding", "edit", "--out", str(tmp_path / "e")]
    assert main(call) == 2
    assert "use --embedding skip" in _one_line(capsys)


def test_kept_norms_keep_each_columns_length_and_untying_keeps_the_unembedding(
    tiny: Tiny, tmp_path: Path, unit_direction: Direction
) -> None:
    model, file, out, r = tiny("qwen2", tied=True), tmp_path / "r", tmp_path / "e", unit_direction(32)
    save_file({"direction": r}, file)
    call = ["edit", "--model", str(model), "--direction", str(file), "--norms", "keep", "--embedding", "untie", "--out", str(out)]
    assert main(call) == 0
    before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    assert "lm_head.weight" not in before and torch.equal(after["lm_head.weight"], before["model.embed_tokens.weight"])
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"] is False
    embedding, was = after["model.embed_tokens.weight"], before["model.embed_tokens.weight"]
    assert float((embedding @ r).abs().max()) < 1e-5 < 0.1 < float((was @ r).abs().max())
    torch.testing.assert_close(embedding.norm(dim=1), was.norm(dim=1))
    for layer in range(4):
        weight, was = (tensors[f"model.layers.{layer}.mlp.down_proj.weight"] for tensors in (after, before))
        assert float((r @ weight).abs().max()) < 1e-5 < 0.1 < float((r @ was).abs().max())
        torch.testing.assert_close(weight.norm(dim=0), was.norm(dim=0))
    loaded = load_model(out)
    assert not loaded.folder.tied and torch.equal(loaded.module.get_output_embeddings().weight, before["model.embed_tokens.weight"])
    proof = json.loads((out / "abliteration.json").read_text(encoding="utf-8"))
    assert proof["norms"] == "keep" and proof["embedding"] == {"policy": "untie", "tied_to_unembedding": False}
    assert main(["verify", str(out), "--base", str(model)]) == 0


@pytest.mark.parametrize("flags", [["--as", "adapter"], ["--as-adapter"]], ids=["as", "alias"])
def test_edit_as_adapter_writes_one_that_peft_loads(
    flags: list[str], tiny: Tiny, tmp_path: Path, unit_direction: Direction, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file, out = tiny(), tmp_path / "r", tmp_path / "adapter"
    save_file({"direction": unit_direction(32)}, file)
    capsys.readouterr()
    assert main(["edit", "--model", str(model), "--direction", str(file), *flags, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: a LoRA adapter of 0.00 MB that changes 9 matrices\n"
    assert main(["edit", "--model", str(model), "--direction", str(file), "--out", str(tmp_path / "edited")]) == 0
    base, edited = load_model(model), load_model(tmp_path / "edited")
    ids = torch.tensor(encode(base.tokenizer, ["What is this?"]))
    with torch.inference_mode():
        expected, adapted = edited.module(ids).logits, PeftModel.from_pretrained(base.module, out)(ids).logits
    assert torch.allclose(adapted, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("tied", "flags", "named"),
    [(False, ["--norms", "keep"], "norms"), (True, ["--embedding", "untie"], "--embedding skip"),
     (True, ["--embedding", "edit"], "--embedding skip"), (False, ["--strength", "0"], "strength")],
    ids=["norms", "untie", "tied", "nothing"],
)  # fmt: skip
def test_what_no_adapter_can_do_is_bad_input(
    tied: bool, flags: list[str], named: str, tiny: Tiny, tmp_path: Path, unit_direction: Direction, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file, out = tiny(tied=tied), tmp_path / "r", tmp_path / "adapter"
    save_file({"direction": unit_direction(32)}, file)
    capsys.readouterr()
    assert main(["edit", "--model", str(model), "--direction", str(file), "--as", "adapter", *flags, "--out", str(out)]) == 2
    assert named in _one_line(capsys) and not out.exists()


def test_an_adapter_can_not_be_verified_and_one_line_says_so(
    tiny: Tiny, tmp_path: Path, unit_direction: Direction, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file, out = tiny(), tmp_path / "r", tmp_path / "adapter"
    save_file({"direction": unit_direction(32)}, file)
    assert main(["edit", "--model", str(model), "--direction", str(file), "--as", "adapter", "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["verify", str(out)]) == 2
    assert (
        _one_line(capsys)
        == f"abliterate: {out}: an output of edit --as adapter, which holds no proof; make the edit as a checkpoint and verify that\n"
    )


def test_packed_experts_as_an_adapter_are_bad_input(tmp_path: Path, unit_direction: Direction, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = save_mxfp4(tmp_path / "base"), tmp_path / "r"
    save_file({"direction": unit_direction(64)}, file)
    capsys.readouterr()
    assert main(["edit", "--model", str(model), "--direction", str(file), "--as", "adapter", "--out", str(tmp_path / "a")]) == 2
    assert "is not a plain matrix" in _one_line(capsys) and not (tmp_path / "a").exists()


LAYOUT = """
attention = ["self_attn.o_proj"]
mlp = [{ weight = "mlp.down_proj.weight" }]
"""


def test_a_layout_file_that_says_what_the_table_says_gives_the_same_bytes(tiny: Tiny, tmp_path: Path, unit_direction: Direction) -> None:
    model, file = tiny(), tmp_path / "r"
    save_file({"direction": unit_direction(32)}, file)
    (tmp_path / "mine.toml").write_text(LAYOUT, encoding="utf-8")
    for flags, out in (([], "a"), (["--layout", str(tmp_path / "mine.toml")], "b")):
        assert main(["edit", "--model", str(model), "--direction", str(file), *flags, "--out", str(tmp_path / out)]) == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    proof = json.loads((tmp_path / "b" / "abliteration.json").read_text(encoding="utf-8"))
    assert proof["self_check"]["layout"] == "mine"
    assert main(["verify", str(tmp_path / "b"), "--base", str(model), "--layout", str(tmp_path / "mine.toml")]) == 0


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('attention = ["self_attn.o_proj"]\nmlp = []', "down_proj"),
        ('attention = ["self_attn.q_proj"]', "o_proj"),
        ('mlp = ["mlp.dwon_proj"]', "down_proj"),
        ('mlp = [{ weight = "mlp.down_proj.weight", axis = 1 }]', "axis 1 must be 32"),
        ('mlp = [{ weight = "mlp.down_proj.weight", axis = 3 }]', "axis"),
        ('block = "model.blocks.{}"', "block 0 has no tensor"),
        ('block = "model.layers"', "block"),
        ('writers = ["x"]', "'writers'"),
        ("attention = [", "not a readable TOML file"),
        (None, "not a readable TOML file"),
    ],
    ids=[
        "a writer less",
        "another writer",
        "a misspelt writer",
        "another axis",
        "no axis",
        "no such blocks",
        "no number",
        "key",
        "no TOML",
        "none",
    ],
)
def test_a_layout_file_that_does_not_fit_is_refused_before_anything_is_written(
    content: str | None, named: str, tiny: Tiny, tmp_path: Path, unit_direction: Direction, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file, out = tiny(), tmp_path / "r", tmp_path / "e"
    save_file({"direction": unit_direction(32)}, file)
    if content is not None:
        (tmp_path / "mine.toml").write_text(content, encoding="utf-8")
    capsys.readouterr()
    layout = ["--layout", str(tmp_path / "mine.toml")]
    assert main(["edit", "--model", str(model), "--direction", str(file), *layout, "--out", str(out)]) == 2
    assert named in _one_line(capsys) and not out.exists()
    assert main(["plan", "--model", str(model), *layout]) == 2
    assert named in _one_line(capsys)


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that ended other than well said: one line on stderr, nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("abliterate: ")
    return captured.err


@pytest.fixture
def edited(tiny: Tiny, tmp_path: Path, unit_direction: Direction, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Path]:
    """A sharded model and its edited checkpoint; nothing on the terminal yet."""
    model = tiny(shards="20KB")
    save_file({"direction": unit_direction(32)}, tmp_path / "r")
    assert main(["edit", "--model", str(model), "--direction", str(tmp_path / "r"), "--out", str(tmp_path / "edited")]) == 0
    capsys.readouterr()
    return model, tmp_path / "edited"


def test_verify_of_a_good_checkpoint_ends_with_0(edited: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model, out = edited
    assert main(["verify", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}: 9 edited tensors match the proof; the others were not checked (use --base)\n"
    assert captured.err.startswith("tensors checked: 9 in ") and captured.err.count("\n") == 1
    assert main(["verify", str(out), "--base", str(model)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}: 9 edited tensors match the proof, all 39 compared with the base\n"
    assert captured.err.startswith("tensors checked: 48 in ") and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda out: _shard(out).unlink(), "model-00002-of-"),
        (lambda out: (out / "model.safetensors.index.json").unlink(), "model.safetensors.index.json"),
        (lambda out: _flip_last(_shard(out)), "model.layers."),
        (lambda out: (out / "tokenizer.json").write_text("{}"), "tokenizer.json"),
    ],
    ids=["shard", "index", "bit", "tokenizer"],
)
def test_verify_of_a_changed_checkpoint_ends_with_1_and_one_line(
    damage: Callable[[Path], object], named: str, edited: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = edited
    damage(out)
    assert main(["verify", str(out), "--base", str(model)]) == 1
    assert named in _one_line(capsys)


def _shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[1]


def _flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_runs_folder_is_verified_by_its_checkpoint(edited: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = edited
    (tmp_path / "mine").mkdir()
    out.rename(tmp_path / "mine" / "checkpoint")
    assert main(["verify", str(tmp_path / "mine"), "--base", str(model)]) == 0
    assert f"{tmp_path / 'mine' / 'checkpoint'}: " in capsys.readouterr().out


def test_verify_of_what_was_never_edited_ends_with_2_and_one_line(
    edited: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = edited
    for arguments, named in (
        ([str(model)], "no abliteration.json"),
        ([str(tmp_path / "nowhere")], "nowhere: no such model folder"),
        ([str(out), "--base", str(tmp_path / "nowhere")], "no model"),
        ([str(out), "--layout", str(tmp_path / "none.toml")], "none.toml"),
    ):
        assert main(["verify", *arguments]) == 2
        assert named in _one_line(capsys)


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
    named = {line.split()[0] for line in printed.splitlines()}
    assert {"model", "weights", "memory", "prompts", "collection", "selection", "edit", "evaluation", "edits", "machine"} <= named


def test_plan_of_an_unknown_architecture_is_bad_input(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny()
    capsys.readouterr()
    for model_type in ("t5", "nonsense"):
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
        assert main(["plan", "--model", str(model)]) == 2
        assert model_type in _one_line(capsys)


def test_plan_refuses_what_a_run_would_refuse(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny()
    capsys.readouterr()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "gemma2"}))  # whose blocks have more norms
    assert main(["plan", "--model", str(model)]) == 2
    assert "norm" in _one_line(capsys)
