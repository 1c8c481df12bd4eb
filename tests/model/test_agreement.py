"""What is stored is what transformers computes with, or it is refused in one line with both: what is measured is what is edited."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VISION, Case, small
from packed import save_architecture, save_fp8, save_mxfp4, set_config, store, tensors_of
from safetensors.torch import save_file
from skeletons import save_r1
from torch import Tensor

from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.checkpoint.verify import verify
from abliterate.cli.main import main
from abliterate.errors import CheckError, InputError
from abliterate.forecast.shapes import imagined
from abliterate.model.agreement import check_agreement, open_checkpoint
from abliterate.model.edit import edit_from_direction
from abliterate.model.folder import open_folder
from abliterate.model.index import INDEX, open_index

Tiny = Callable[..., Path]
Change = Callable[[dict[str, Tensor]], object]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def rewritten(folder: Path, change: Change) -> Path:
    tensors = tensors_of(folder)
    change(tensors)
    store(folder, tensors)
    return folder


def said_of(folder: Path) -> list[str]:
    return [str(unused) for unused in check_agreement(open_folder(folder), open_index(folder))]


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        open_checkpoint(folder)
    assert len(str(error.value).splitlines()) == 1 and str(error.value).startswith(f"{folder}: ")
    return str(error.value).removeprefix(f"{folder}: ")


@pytest.mark.parametrize("case", [case for case, _ in VISION], ids=str)
def test_vision_language_models_open_and_vision_that_is_not_used_is_listed(tmp_path: Path, case: Case) -> None:
    small(case, text=False).save_pretrained(tmp_path)
    assert all(said.endswith("vision or audio)") for said in said_of(tmp_path))


@pytest.mark.parametrize("save", [save_fp8, save_mxfp4])
@pytest.mark.parametrize("sharded", [False, True])
def test_quantised_formats_agree_with_what_they_stand_for(tmp_path: Path, save: Callable[..., Path], sharded: bool) -> None:
    assert said_of(save(tmp_path, sharded=sharded)) == []


@pytest.mark.parametrize("fused", [False, True])
def test_experts_may_be_single_or_one_tensor_on_the_disk(tmp_path: Path, fused: bool) -> None:
    small(Case("qwen3_moe")).save_pretrained(tmp_path, save_original_format=not fused)
    assert any(".experts.0." in name for name in tensors_of(tmp_path)) is not fused
    assert said_of(tmp_path) == []


def test_blocks_of_multi_token_prediction_are_listed(tmp_path: Path) -> None:
    folder = open_folder(save_r1(tmp_path, experts=8))
    (unused,) = check_agreement(folder, imagined(folder)[0])
    assert {name.split(".")[2] for name in unused.names} == {"61"} and len(unused.names) == 44
    assert str(unused) == "44 tensors (model.layers.61.*, multi-token prediction)"


def test_what_transformers_computes_itself_and_what_an_architecture_ignores_is_listed(tiny: Tiny, tmp_path: Path) -> None:
    folder = rewritten(tiny(), lambda t: t.update({f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(4)}))
    assert said_of(folder) == ["4 tensors (model.layers.*.self_attn.rotary_emb.inv_freq, recomputed by transformers)"]
    small(Case("qwen3_next", blocks=4)).save_pretrained(tmp_path / "ahead")
    rewritten(tmp_path / "ahead", lambda t: t.update({"mtp.unheard_of.weight": torch.ones(4)}))
    assert said_of(tmp_path / "ahead") == ["1 tensor (mtp.unheard_of.weight, its architecture ignores them)"]


def test_it_is_said_in_one_line(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    folder = rewritten(tiny(), lambda t: t.update({"model.rotary_emb.inv_freq": torch.ones(4)}))
    open_checkpoint(folder)
    said = "not used by transformers: 1 tensor (model.rotary_emb.inv_freq, recomputed by transformers)"
    assert capsys.readouterr().err == f"{folder.name}: {said}\n"


def _named(prefix: str) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    return change


DISAGREEING: dict[str, tuple[Change, dict[str, Any], str]] = {
    "biases that the config denies": (
        lambda t: t.update({f"model.layers.{n}.self_attn.q_proj.bias": torch.ones(32) for n in range(4)}),
        {},
        "model.layers.0.self_attn.q_proj.bias and others are stored, but not used",
    ),
    "biases that are not there": (lambda t: None, {"attention_bias": True}, "k_proj.bias and others are used, but not stored"),
    "a classifier's head": (
        lambda t: t.update({"score.weight": t.pop(HEAD)[:2].clone()}),
        {},
        "score.weight is stored, but not used; lm_head.weight is used, but not stored",
    ),
    "a reward model's head beside the model's own": (
        lambda t: t.update({"v_head.summary.weight": torch.ones(1, 32)}), {}, "v_head.summary.weight is stored, but not used"
    ),
    "another vocabulary": (
        lambda t: None, {"vocab_size": 264},
        "lm_head.weight is stored as [259, 32], but the config's vocab_size gives [264, 32] (and others likewise)",
    ),
    "another width of the MLP": (lambda t: None, {"intermediate_size": 48}, "but the config's intermediate_size gives [32, 48]"),
    "another shape in one block alone": (
        lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.ones(63, 32)}), {},
        "model.layers.2.mlp.up_proj.weight is stored as [63, 32], but the config's intermediate_size gives [64, 32]",
    ),
    "fewer blocks than stored": (lambda t: None, {"num_hidden_layers": 3}, "model.layers.3."),
    "more blocks than stored": (lambda t: None, {"num_hidden_layers": 5}, "model.layers.4."),
    "a missing norm": (lambda t: t.pop("model.norm.weight"), {}, "model.norm.weight is used, but not stored"),
    "a tensor under two names": (
        lambda t: t.update({"layers.1.mlp.up_proj.weight": torch.ones(64, 32)}), {}, "layers.1.mlp.up_proj.weight is stored under two names"
    ),
    "a tied unembedding alone": (lambda t: t.pop(EMBEDDING), {"tie_word_embeddings": True}, f"{HEAD} is stored without {EMBEDDING}"),
    "quantised weights without their config": (
        lambda t: t.update({"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1, 1)}), {}, "weight_scale_inv is stored"
    ),
    "a compiled model": (_named("_orig_mod."), {}, "torch.compile puts `_orig_mod.` there"),
    "a compiled block": (
        lambda t: t.update({"model.layers.0._orig_mod.mlp.up_proj.weight": t.pop("model.layers.0.mlp.up_proj.weight")}), {}, "torch.compile"
    ),
    "a distributed model": (_named("module."), {}, "DistributedDataParallel"),
    "an adapter that is not merged": (_named("base_model.model."), {}, "merge the adapter (merge_and_unload)"),
    "an adapter's matrices beside the weights": (
        lambda t: t.update({"model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(4, 32)}), {}, "a LoRA adapter's, which is not merged"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "config", "says"), DISAGREEING.values(), ids=DISAGREEING)
def test_what_disagrees_is_refused_with_both(tiny: Tiny, change: Change, config: dict[str, Any], says: str) -> None:
    folder = rewritten(tiny(), change)
    set_config(folder, **config)
    assert says in refused(folder)


def test_an_expert_of_another_shape_or_one_that_is_missing_is_refused(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    save_architecture(tmp_path / "odd", "qwen3_moe")
    assert "experts.gate_up_proj" in refused(rewritten(tmp_path / "odd", lambda t: t.update({name: torch.ones(3, 64)})))
    save_architecture(tmp_path / "lost", "qwen3_moe")
    assert "experts.gate_up_proj" in refused(rewritten(tmp_path / "lost", lambda t: t.pop(name)))


@pytest.mark.parametrize(
    "command",
    [
        ["audit", "--model", "BAD", "--prompts", "harmless", "--out", "OUT"],
        ["run", "--model", "BAD", "--out", "OUT"],
        ["collect", "--model", "BAD", "--target", "harmful", "--baseline", "harmless", "--out", "OUT"],
        ["compare", "--base", "GOOD", "--derived", "BAD", "--prompts", "harmless", "--out", "OUT"],
        ["compare", "--base", "BAD", "--derived", "GOOD", "--weights-only", "--out", "OUT"],
        ["edit", "--model", "BAD", "--direction", "R", "--out", "OUT"],
        ["edit", "--model", "BAD", "--direction", "R", "--out", "OUT", "--as", "adapter"],
        ["plan", "--model", "BAD"],
        ["chat", "--model", "BAD"],
    ],
    ids=lambda command: " ".join(word for word in command if word.islower()),
)
def test_every_command_refuses_it_alike(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    good, bad, r = tiny(), tiny(), tmp_path / "r"
    set_config(bad, vocab_size=264)
    save_file({"direction": torch.ones(32)}, r)
    given = {"GOOD": good, "BAD": bad, "R": r, "OUT": tmp_path / "out"}
    capsys.readouterr()
    assert main([str(given.get(word, word)) for word in command]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("abliterate: ")]
    assert f"{bad}: the stored tensors don't match config.json: {HEAD} is stored as [259, 32], but" in line
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_disagrees_is_neither_proven_nor_verified(
    tiny: Tiny, tmp_path: Path, unit_direction: Callable[[int], Tensor]
) -> None:
    model, out = tiny(), tmp_path / "out"
    edit_checkpoint(open_folder(model), edit_from_direction(unit_direction(32), 4), out, "base", lambda proof: "card\n")
    for folder in (model, out):
        set_config(folder, vocab_size=264)
    with pytest.raises(CheckError, match=r"is stored as \[259, 32\], but the config's vocab_size gives \[264, 32\]"):
        verify(open_folder(out), None)
    with pytest.raises(InputError, match=r"is stored as \[259, 32\], but the config's vocab_size gives \[264, 32\]"):
        edit_checkpoint(open_folder(model), edit_from_direction(unit_direction(32), 4), tmp_path / "b", "base", lambda proof: "card\n")
    assert not (tmp_path / "b").exists()


def test_a_plan_without_weights_refuses_an_index_that_lacks_a_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = save_r1(tmp_path, experts=8) / INDEX
    content = json.loads(index.read_text())
    del content["weight_map"]["model.layers.7.self_attn.q_a_layernorm.weight"]
    index.write_text(json.dumps(content))
    assert main(["plan", "--model", str(tmp_path)]) == 2
    assert "model.layers.7.self_attn.q_a_layernorm.weight is used, but not stored" in capsys.readouterr().err
