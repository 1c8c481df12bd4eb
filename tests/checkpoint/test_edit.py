"""The whole edit of tiny checkpoints: exact, atomic, and what hooks at run time compute."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from abliterate.checkpoint import edit as editing
from abliterate.checkpoint.edit import EditResult, check_editable, edit_checkpoint, work_of
from abliterate.checkpoint.names import PROOF
from abliterate.checkpoint.records import Proof
from abliterate.checkpoint.verify import verify
from abliterate.compute.hooks import ablated
from abliterate.compute.whole.model import load_model
from abliterate.errors import CheckError, InputError
from abliterate.model.edit import Edit, edit_from_direction, load_edit
from abliterate.model.folder import open_folder
from abliterate.model.index import SINGLE, ShardIndex, open_index

Tiny = Callable[..., Path]
Unit = Callable[..., torch.Tensor]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-3}
# What storing a tiny random model in bf16 does to its logits (measured 0.016 to 0.029); float32 shows exactness.
ROUNDING = 3e-2
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
EMBEDDING, HEAD, DOWN = "model.embed_tokens.weight", "lm_head.weight", "model.layers.3.mlp.down_proj.weight"
SHARDS = pytest.mark.parametrize("shards", [None, "20KB"])
EVERY_KIND = pytest.mark.parametrize(
    ("family", "shards", "dtype", "tied"),
    [
        (family, shards, dtype, tied)
        for family in ("llama", "qwen2")
        for shards in (None, "20KB")
        for dtype in (torch.float32, torch.bfloat16)
        for tied in (False, True)
    ],
)


def _edit(model: Path, plan: Edit, out: Path) -> EditResult:
    return edit_checkpoint(open_folder(model), plan, out, "base", lambda proof: "card\n")


def _hashes(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _placed(index: ShardIndex) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    return {name: (info.shard, info.dtype, info.shape) for name, info in index.tensors.items()}


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    return folder


def _logits(model: Path, plan: Edit | None = None) -> torch.Tensor:
    loaded = load_model(model, "float32", "cpu")
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        if plan is None:
            return loaded.module(ids).logits
        with ablated(loaded, plan):
            return loaded.module(ids).logits


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@EVERY_KIND
def test_full_strength_leaves_no_component_along_r(
    tiny: Tiny, unit_direction: Unit, tmp_path: Path, family: str, shards: str | None, dtype: torch.dtype, tied: bool
) -> None:
    model, r = tiny(family, shards=shards, dtype=dtype, tied=tied), unit_direction(32)
    _edit(model, edit_from_direction(r, 4, tied=tied), tmp_path / "out")
    old, new = _tensors(model), _tensors(tmp_path / "out")
    for layer in range(4):
        for writer in WRITERS:
            name = f"model.layers.{layer}.{writer}.weight"
            along = (r.double() @ new[name].double()).norm() / old[name].double().norm()
            assert along < TOLERANCE[dtype]
            assert (r.double() @ old[name].double()).norm() / old[name].double().norm() > 10 * TOLERANCE[dtype]


@SHARDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_everything_but_the_edited_tensors_is_byte_identical(
    tiny: Tiny, unit_direction: Unit, tmp_path: Path, shards: str | None, dtype: torch.dtype, tied: bool
) -> None:
    model = tiny("qwen2" if tied else "llama", shards=shards, dtype=dtype, tied=tied)
    result = _edit(model, edit_from_direction(unit_direction(32), 4, tied=tied), tmp_path / "out")
    edited = {tensor.name for tensor in result.proof.tensors}
    before, after = _hashes(model), _hashes(tmp_path / "out")
    assert after.keys() - before.keys() == {"README.md", "abliteration.json", "abliteration.plan"}
    assert before.keys() <= after.keys()
    assert all(after[name] == before[name] for name in before if not name.endswith(".safetensors"))
    source, written = open_index(model), open_index(tmp_path / "out")
    assert _placed(source) == _placed(written)
    untouched = set(source.shards) - {source.tensors[name].shard for name in edited}
    assert all(after[shard] == before[shard] for shard in untouched) and bool(untouched) == (shards is not None)
    for name in source.tensors.keys() - edited:
        assert source.read(name).view(torch.uint8).equal(written.read(name).view(torch.uint8))


@SHARDS
@pytest.mark.parametrize(("embedding", "keep_norms"), [("skip", False), ("edit", False), ("edit", True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_zero_is_byte_identical(
    tiny: Tiny, unit_direction: Unit, tmp_path: Path, shards: str | None, embedding: str, keep_norms: bool, dtype: torch.dtype
) -> None:
    model = tiny(shards=shards, dtype=dtype)
    result = _edit(model, edit_from_direction(unit_direction(32), 4, 0.0, embedding, keep_norms=keep_norms), tmp_path / "out")
    assert result.tensors == 0
    before, after = _hashes(model), _hashes(tmp_path / "out")
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_biases_of_writers_lose_their_component_too(tiny: Tiny, unit_direction: Unit, tmp_path: Path, dtype: torch.dtype) -> None:
    model, r = tiny(attention_bias=True, mlp_bias=True, dtype=dtype), unit_direction(32)
    _edit(model, edit_from_direction(r, 4), tmp_path / "out")
    old, new = _tensors(model), _tensors(tmp_path / "out")
    for name in (f"model.layers.{layer}.{writer}.bias" for layer in range(4) for writer in WRITERS):
        assert abs(r @ old[name].float()) > 10 * TOLERANCE[dtype]
        assert abs(r.double() @ new[name].double()) < TOLERANCE[dtype] * old[name].double().norm()


@pytest.mark.parametrize(
    ("tied", "embedding"), [(False, "edit"), (False, "skip"), (True, "edit"), (True, "skip"), (False, "auto"), (True, "auto")]
)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.bfloat16, ROUNDING)])
def test_the_edited_checkpoint_computes_what_hooks_do(
    tiny: Tiny, unit_direction: Unit, tmp_path: Path, tied: bool, embedding: str, dtype: torch.dtype, near: float
) -> None:
    model = tiny("qwen2" if tied else "llama", tied=tied, dtype=dtype)
    plan = edit_from_direction(unit_direction(32), 4, policy=embedding, tied=tied)
    _edit(model, plan, tmp_path / "out")
    edited = _logits(tmp_path / "out")
    assert _distance(edited, _logits(model, plan)) < near
    assert _distance(edited, _logits(model)) > 3 * ROUNDING


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.bfloat16, ROUNDING)])
def test_a_direction_per_block_computes_what_hooks_do(tiny: Tiny, tmp_path: Path, strength: float, dtype: torch.dtype, near: float) -> None:
    model = tiny(shards="20KB", dtype=dtype, attention_bias=True, mlp_bias=True)
    plan = edit_from_direction(torch.randn(4, 32, generator=torch.Generator().manual_seed(5)), 4, strength)
    assert plan.embedding == "skip"
    _edit(model, plan, tmp_path / "out")
    edited = _logits(tmp_path / "out")
    assert _distance(edited, _logits(model, plan)) < near
    assert _distance(edited, _logits(model)) > 3 * ROUNDING


@pytest.mark.parametrize("tied", [False, True])
def test_half_strength_with_the_embedding_computes_what_hooks_do(tiny: Tiny, unit_direction: Unit, tmp_path: Path, tied: bool) -> None:
    model = tiny(tied=tied)
    plan = edit_from_direction(unit_direction(32), 4, 0.5, "edit", tied)
    _edit(model, plan, tmp_path / "out")
    assert _distance(_logits(tmp_path / "out"), _logits(model, plan)) < 1e-4


def test_several_rows_and_mixed_strengths_compute_what_hooks_do(tiny: Tiny, tmp_path: Path) -> None:
    model = tiny()
    torch.manual_seed(3)
    rows = torch.linalg.qr(torch.randn(4, 2, 32, 3)).Q.transpose(-1, -2).contiguous()
    plan = Edit(rows, torch.tensor([[1.0, 0.0], [0.0, 0.3], [0.7, 1.0], [0.0, 0.0]]), "skip")
    result = _edit(model, plan, tmp_path / "out")
    assert result.tensors == 4
    assert _distance(_logits(tmp_path / "out"), _logits(model, plan)) < 1e-4


def _with_head(head: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({HEAD: head(tensors[EMBEDDING].clone()).contiguous()})


def test_a_tied_config_whose_checkpoint_stores_the_head_too_is_exact_or_refused(tiny: Tiny, unit_direction: Unit, tmp_path: Path) -> None:
    model, r = _rewrite(tiny(tied=True), _with_head(lambda head: head)), unit_direction(32)
    for policy in ("edit", "untie"):
        with pytest.raises(InputError, match="stored too"):
            _edit(model, edit_from_direction(r, 4, policy=policy, tied=True), tmp_path / "out")
    plan = edit_from_direction(r, 4, policy="auto", tied=True)
    _edit(model, plan, tmp_path / "out")
    assert _distance(_logits(tmp_path / "out"), _logits(model, plan)) < 1e-4


@pytest.mark.parametrize("policy", ["auto", "edit", "untie", "skip"])
def test_a_tied_config_whose_checkpoint_stores_another_head_is_untied_and_says_so_afterwards(
    tiny: Tiny, unit_direction: Unit, tmp_path: Path, policy: Any
) -> None:
    model, r = _rewrite(tiny(tied=True), _with_head(lambda head: head.flip(0))), unit_direction(32)
    folder = open_folder(model)
    plan = edit_from_direction(r, 4, policy=policy, tied=folder.tied)
    result = _edit(model, plan, tmp_path / "out")
    assert any(entry.name == EMBEDDING for entry in result.proof.tensors) is (policy != "skip")
    assert result.proof.embedding.tied_to_unembedding is False
    assert torch.equal(_tensors(tmp_path / "out")[HEAD], _tensors(model)[HEAD])
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"] is False
    assert _distance(_logits(tmp_path / "out"), _logits(model, plan)) < 1e-4
    assert verify(open_folder(tmp_path / "out"), folder)[1] == len(_tensors(model))


@SHARDS
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.bfloat16, ROUNDING)])
def test_untying_edits_the_embedding_and_leaves_the_unembedding_its_old_weights(
    tiny: Tiny, unit_direction: Unit, tmp_path: Path, shards: str | None, dtype: torch.dtype, near: float
) -> None:
    model, r = tiny("qwen2", tied=True, shards=shards, dtype=dtype), unit_direction(32)
    plan = edit_from_direction(r, 4, policy="untie", tied=True)
    result = _edit(model, plan, tmp_path / "out")
    old, new = _tensors(model), _tensors(tmp_path / "out")
    assert new.keys() - old.keys() == {HEAD} and HEAD not in old
    assert new[HEAD].dtype == dtype and torch.equal(new[HEAD], old[EMBEDDING])
    assert float((new[EMBEDDING].double() @ r.double()).norm()) < TOLERANCE[dtype] * float(old[EMBEDDING].double().norm())
    assert result.proof.embedding.document() == {"policy": "untie", "tied_to_unembedding": False}
    configs = [json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (model, tmp_path / "out")]
    assert configs[0]["tie_word_embeddings"] is True and configs[1] == configs[0] | {"tie_word_embeddings": False}
    assert _distance(_logits(tmp_path / "out"), _logits(model, plan)) < near
    loaded = load_model(tmp_path / "out", "float32", "cpu").module
    assert torch.equal(loaded.get_output_embeddings().weight, old[EMBEDDING].float())
    assert torch.equal(loaded.get_input_embeddings().weight, new[EMBEDDING].float())


@pytest.mark.parametrize("shards", [None, "6KB"])
def test_untying_leaves_everything_else_byte_identical(tiny: Tiny, unit_direction: Unit, tmp_path: Path, shards: str | None) -> None:
    model = tiny(tied=True, shards=shards, dtype=torch.bfloat16)
    result = _edit(model, edit_from_direction(unit_direction(32), 4, policy="untie", tied=True), tmp_path / "out")
    edited = {tensor.name for tensor in result.proof.tensors}
    old, new = _tensors(model), _tensors(tmp_path / "out")
    assert EMBEDDING in edited and all(torch.equal(new[name], old[name]) for name in old.keys() - edited)
    source, before, after = open_index(model), _hashes(model), _hashes(tmp_path / "out")
    assert source.shards.keys() <= after.keys()
    if shards:  # a shard without an edited tensor is the source's file
        untouched = source.shards.keys() - {source.tensors[name].shard for name in edited}
        assert untouched and all(after[name] == before[name] for name in untouched)
    changed = {"config.json", *source.shards, *(["model.safetensors.index.json"] if shards else [])}
    assert all(after[name] == before[name] for name in before.keys() - changed)


def test_an_untied_checkpoint_can_be_edited_again(tiny: Tiny, unit_direction: Unit, tmp_path: Path) -> None:
    _edit(tiny(tied=True, shards="20KB"), edit_from_direction(unit_direction(32), 4, policy="untie", tied=True), tmp_path / "once")
    again = open_folder(tmp_path / "once")
    assert not again.tied
    plan = edit_from_direction(unit_direction(32, 2), 4, policy="untie", tied=again.tied)
    result = _edit(tmp_path / "once", plan, tmp_path / "twice")
    assert plan.embedding == "edit" and EMBEDDING in {tensor.name for tensor in result.proof.tensors}
    assert torch.equal(_tensors(tmp_path / "twice")[HEAD], _tensors(tmp_path / "once")[HEAD])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_keeping_norms_keeps_the_length_of_what_every_input_and_token_writes(
    tiny: Tiny, unit_direction: Unit, tmp_path: Path, dtype: torch.dtype, strength: float
) -> None:
    model, r = tiny(attention_bias=True, dtype=dtype), unit_direction(32)
    result = _edit(model, edit_from_direction(r, 4, strength, "edit", keep_norms=True), tmp_path / "out")
    assert result.proof.norms == "keep" and result.tensors == 13
    old, new = _tensors(model), _tensors(tmp_path / "out")
    for tensor in result.proof.tensors:
        name, axis = tensor.name, 1 if tensor.kind == "embedding" else 0
        assert not torch.equal(old[name], new[name])
        torch.testing.assert_close(new[name].double().norm(dim=axis), old[name].double().norm(dim=axis), rtol=TOLERANCE[dtype] * 4, atol=0)
        assert tensor.error < TOLERANCE[dtype]
        if strength == 1:
            assert tensor.after < TOLERANCE[dtype] * float(old[name].double().norm())


def test_behind_a_norm_nothing_that_a_block_adds_lies_along_the_direction(tiny: Tiny, unit_direction: Unit, tmp_path: Path) -> None:
    model, r = tiny("gemma2", head_dim=8), unit_direction(32)
    along = {}
    for name, path in (("before", model), ("after", tmp_path / "out")):
        if name == "after":
            _edit(model, edit_from_direction(r, 4), path)
        loaded = load_model(path, "float32", "cpu")
        with torch.no_grad():
            states = loaded.module(torch.arange(40).reshape(2, 20), output_hidden_states=True).hidden_states[:-1]
        along[name] = max(float((state @ r).abs().max() / state.norm(dim=-1).max()) for state in states)
    assert along["after"] < 1e-5 < 0.05 < along["before"]


def test_auto_edits_an_untied_embedding_and_leaves_a_tied_one(tiny: Tiny, unit_direction: Unit, tmp_path: Path) -> None:
    r = unit_direction(32)
    for tied in (False, True):
        model = tiny(tied=tied)
        result = _edit(model, edit_from_direction(r, 4, tied=tied), tmp_path / f"out-{tied}")
        name = "model.embed_tokens.weight"
        same = torch.equal(_tensors(model)[name], _tensors(tmp_path / f"out-{tied}")[name])
        assert same == tied
        assert any(line.startswith(name) for line in result.proof.not_edited) == tied
        assert result.proof.embedding.document() == {"policy": "skip" if tied else "edit", "tied_to_unembedding": tied}


def test_no_prompt_can_put_anything_along_r_into_the_stream(tiny: Tiny, unit_direction: Unit, tmp_path: Path) -> None:
    model, r = tiny(attention_bias=True, mlp_bias=True), unit_direction(32)
    _edit(model, edit_from_direction(r, 4), tmp_path / "out")
    loaded = load_model(tmp_path / "out", "float32", "cpu")
    with torch.no_grad():
        states = loaded.module(torch.arange(40).reshape(2, 20), output_hidden_states=True).hidden_states[:-1]
    for state in states:
        assert float((state @ r).abs().max()) < 1e-5 * float(state.norm(dim=-1).max())


def test_what_the_plan_leaves_is_listed_with_its_reason(tiny: Tiny, unit_direction: Unit, tmp_path: Path) -> None:
    plan = edit_from_direction(unit_direction(32), 4, policy="skip")
    strength = plan.strength.clone()
    strength[2, 0] = 0
    result = _edit(tiny(), replace(plan, strength=strength), tmp_path / "out")
    assert result.proof.not_edited == (
        "model.embed_tokens.weight: the plan skips it",
        "model.layers.2.self_attn.o_proj.weight: strength 0 in the plan",
    )


def test_proof_and_card_stand_in_the_new_folder(tiny: Tiny, unit_direction: Unit, tmp_path: Path) -> None:
    result = _edit(tiny(), edit_from_direction(unit_direction(32), 4), tmp_path / "out")
    assert Proof.read(tmp_path / "out" / PROOF) == result.proof
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == "card\n"
    assert result.tensors == len(result.proof.tensors) == 9
    assert result.proof.self_check and result.proof.self_check.architecture == "llama" and result.proof.self_check.left < 1e-5
    assert (result.proof.norms, result.proof.unpacked, result.proof.base_model) == ("free", (), "base")


@pytest.mark.parametrize(("policy", "keep_norms"), [("edit", False), ("untie", True), ("skip", True)])
def test_the_plan_stands_beside_its_proof_and_is_no_weight_file(
    tiny: Tiny, unit_direction: Unit, tmp_path: Path, policy: str, keep_norms: bool
) -> None:
    plan = edit_from_direction(unit_direction(32), 4, 0.5, policy, tied=True, keep_norms=keep_norms)
    _edit(tiny(tied=True), plan, tmp_path / "out")
    back = load_edit(tmp_path / "out" / "abliteration.plan")
    assert torch.equal(back.strength, plan.strength) and (back.embedding, back.keep_norms) == (policy, keep_norms)
    torch.testing.assert_close(back.direction, plan.direction, rtol=0, atol=1e-7)


@SHARDS
@pytest.mark.parametrize("policy", ["edit", "untie"])
def test_every_byte_that_is_written_or_read_back_is_heard_of_and_counted(
    tiny: Tiny, unit_direction: Unit, tmp_path: Path, shards: str | None, policy: str
) -> None:
    folder, heard = open_folder(tiny(tied=True, shards=shards)), list[int]()
    plan = edit_from_direction(unit_direction(32), 4, policy=policy, tied=True)
    result = edit_checkpoint(folder, plan, tmp_path / "out", "b", lambda proof: "", heard.append)
    written = open_index(tmp_path / "out")
    read_back = sum(written.tensors[entry.name].nbytes for entry in result.proof.tensors)
    assert result.written_bytes == written.nbytes
    headers = {shard: min(i.start for i in written.in_shard(shard)) for shard in written.shards}
    provenance = sum(start % 4096 != start for start in headers.values()) * 4096
    assert sum(heard) == work_of(folder, plan) == written.nbytes - provenance + read_back


def test_the_source_is_never_changed(tiny: Tiny, unit_direction: Unit, tmp_path: Path) -> None:
    model = tiny(shards="20KB")
    (model / "README.md").write_text("old card")
    before = _hashes(model)
    _edit(model, edit_from_direction(unit_direction(32), 4), tmp_path / "out")
    assert _hashes(model) == before


def test_an_edited_checkpoint_can_be_edited_again(tiny: Tiny, unit_direction: Unit, tmp_path: Path) -> None:
    plan = edit_from_direction(unit_direction(32), 4)
    _edit(tiny(dtype=torch.bfloat16), plan, tmp_path / "once")
    _edit(tmp_path / "once", plan, tmp_path / "twice")
    assert (tmp_path / "twice" / "abliteration.json").is_file()


def test_a_plan_stored_in_half_precision_is_edited_or_refused_as_input(tiny: Tiny, unit_direction: Unit, tmp_path: Path) -> None:
    rows = unit_direction(32).bfloat16().expand(4, 2, 1, 32).contiguous()
    save_file({"direction": rows, "strength": torch.ones(4, 2)}, tmp_path / "p", {"components": '["attention","mlp"]'})
    try:
        plan = load_edit(tmp_path / "p")
    except InputError:
        return
    assert _edit(tiny(), plan, tmp_path / "out").proof.worst.left < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_writer_leaves_nothing(tiny: Tiny, unit_direction: Unit, tmp_path: Path, value: float) -> None:
    model = _rewrite(tiny(), lambda tensors: tensors[DOWN][0].fill_(value))
    with pytest.raises(InputError, match=r"layers\.3\.mlp\.down_proj\.weight holds NaN"):
        _edit(model, edit_from_direction(unit_direction(32), 4), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize(("call", "number"), [("pwrite", 1), ("pwrite", 4), ("copy_file_range", 2)])
def test_a_full_disk_leaves_nothing(
    tiny: Tiny, unit_direction: Unit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    model = tiny()
    check_editable(open_folder(model))  # its small copy is written elsewhere
    calls, real = iter(range(1000)), getattr(os, call)

    def full(*args: object) -> int:
        if next(calls) == number:
            raise OSError(28, "No space left on device")
        return int(real(*args))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(InputError, match="no space left"):
        _edit(model, edit_from_direction(unit_direction(32), 4), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [model]


def _lose(folder: Path) -> None:
    _rewrite(folder, lambda tensors: tensors.pop("model.norm.weight"))


def _retype(folder: Path) -> None:
    _rewrite(folder, lambda tensors: tensors.update({HEAD: tensors[HEAD].half()}))


def _keep(folder: Path) -> None:
    info = open_index(folder).tensors[DOWN]
    with (folder / info.shard).open("r+b") as file:
        file.seek(info.start)
        file.write((open_index(folder).read(DOWN) + 1e-3).numpy().tobytes())


@pytest.mark.parametrize(
    ("damage", "says"), [(_lose, "differ from those planned"), (_retype, "differ from those planned"), (_keep, f"worst: {DOWN}")]
)
def test_what_is_not_on_disk_as_planned_fails_the_edit_and_leaves_nothing(
    tiny: Tiny, unit_direction: Unit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], says: str
) -> None:
    model, write = tiny(), editing.write_shards

    def damaged(*args: Any) -> object:
        before = write(*args)
        damage(args[3])
        return before

    monkeypatch.setattr(editing, "write_shards", damaged)
    with pytest.raises(CheckError, match=says):
        _edit(model, edit_from_direction(unit_direction(32), 4), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.experts.down_proj.weight",
        "model.layers.0.mlp.down_proj.qweight",
        "model.layers.4.mlp.extra_proj.weight",
        "layers.0.mlp.down_proj.weight",
        "lm_head.bias",
        "model.embed_positions.weight",
        "score.weight",
    ],
)
def test_a_tensor_outside_the_architecture_is_refused_by_name(tiny: Tiny, unit_direction: Unit, tmp_path: Path, name: str) -> None:
    model = _rewrite(tiny(), lambda tensors: tensors.update({name: torch.ones(32)}))
    with pytest.raises(InputError, match=f"not in a model of its architecture .*{name}"):
        check_editable(open_folder(model))
    with pytest.raises(InputError, match=name):
        _edit(model, edit_from_direction(unit_direction(32), 4), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize("lost", ["model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.o_proj.weight"])
def test_a_missing_writer_is_named(tiny: Tiny, unit_direction: Unit, tmp_path: Path, lost: str) -> None:
    model = _rewrite(tiny(), lambda tensors: tensors.pop(lost))
    says = rf"block {lost.split('.')[2]} differs .*{lost.split('.', 3)[3]}"
    with pytest.raises(InputError, match=says):
        check_editable(open_folder(model))
    with pytest.raises(InputError, match=says):
        _edit(model, edit_from_direction(unit_direction(32), 4), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [model]


def test_a_card_that_cannot_be_made_leaves_nothing(tiny: Tiny, unit_direction: Unit, tmp_path: Path) -> None:
    model = tiny()
    with pytest.raises(ZeroDivisionError):
        edit_checkpoint(open_folder(model), edit_from_direction(unit_direction(32), 4), tmp_path / "out", "b", lambda proof: str(1 // 0))
    assert list(tmp_path.iterdir()) == [model]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.model.folder import open_folder
from abliterate.model.edit import edit_from_direction

calls = iter(range(3))

def advance(done):
    if next(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

model, out = map(Path, sys.argv[1:])
edit_checkpoint(open_folder(model), edit_from_direction(torch.ones(32), 4), out, "b", lambda proof: "", advance)
"""


def test_a_killed_edit_leaves_no_name_and_the_next_one_sweeps(tiny: Tiny, unit_direction: Unit, tmp_path: Path) -> None:
    model, out = tiny(), tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, str(model), str(out)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    stale = list(tmp_path.glob(".out.partial-*"))
    assert len(stale) == 1 and (stale[0] / SINGLE).stat().st_size > 0
    _edit(model, edit_from_direction(unit_direction(32), 4), out)
    assert sorted(tmp_path.iterdir()) == sorted([model, out])
