"""The proof of an edited checkpoint, derived again: a good one holds, and whatever was changed afterwards is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import save_fp8, save_mxfp4, set_config, store, tensors_of
from safetensors.torch import load_file, save_file

from abliterate.checkpoint import selfcheck, stream
from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.checkpoint.names import PLAN, PROOF
from abliterate.checkpoint.output import UNTIED_SHARD
from abliterate.checkpoint.proof import measure
from abliterate.checkpoint.tasks import edit_tasks
from abliterate.checkpoint.verify import allowed, verify
from abliterate.errors import CheckError, InputError
from abliterate.model.edit import edit_from_direction, load_edit, save_edit
from abliterate.model.folder import open_folder
from abliterate.model.index import SINGLE, open_index

Made = Callable[[str], tuple[Path, Path]]
Damage = Callable[[Path], Any]
DOWN, QUERY = "model.layers.2.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight"
EXPERTS, FP8_DOWN = "model.layers.1.mlp.experts", "model.layers.0.mlp.down_proj.weight"


def _faint(folder: Path) -> Path:
    """Biases so small that float32 can't square them, and rounds them by a good part of themselves."""
    tensors = load_file(folder / SINGLE)
    faint = {name: torch.full_like(t, 3e-42) for name, t in tensors.items() if name.endswith("o_proj.bias")}
    assert faint
    save_file(tensors | faint, folder / SINGLE, {"format": "pt"})
    return folder


KINDS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "single": (lambda path: save_tiny(path), {}),
    "sharded": (lambda path: save_tiny(path, shards="20KB", dtype=torch.bfloat16), {}),
    "post-norm": (lambda path: save_tiny(path, "gemma2", layers=2), {"policy": "skip"}),
    "half strength": (lambda path: save_tiny(path, dtype=torch.bfloat16), {"strength": 0.5}),
    "half strength, norms kept": (lambda path: save_tiny(path, dtype=torch.bfloat16), {"strength": 0.5, "keep_norms": True}),
    "tied": (lambda path: save_tiny(path, "qwen2", tied=True), {}),
    "untied": (lambda path: save_tiny(path, "qwen2", tied=True, shards="20KB"), {"policy": "untie"}),
    "untied single": (lambda path: save_tiny(path, "qwen2", tied=True), {"policy": "untie"}),
    "fp8": (save_fp8, {}),
    "fp8 sharded": (lambda path: save_fp8(path, sharded=True), {}),
    "mxfp4": (save_mxfp4, {}),
    "biases below normal numbers": (lambda path: _faint(save_tiny(path, attention_bias=True)), {}),
    "mxfp4 sharded": (lambda path: save_mxfp4(path, sharded=True), {}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Base and edited checkpoint of a kind, made once and to be left as they are."""
    done: dict[str, tuple[Path, Path]] = {}

    def make(kind: str) -> tuple[Path, Path]:
        if kind not in done:
            save, how = KINDS[kind]
            place = tmp_path_factory.mktemp("made")
            folder = open_folder(save(place / "base"))
            direction = torch.randn(folder.d_model, generator=torch.Generator().manual_seed(3))
            edit = edit_from_direction(direction, folder.layers, tied=folder.tied, **how)
            edit_checkpoint(folder, edit, place / "edited", "base", lambda proof: "card\n")
            done[kind] = place / "base", place / "edited"
        return done[kind]

    return make


@pytest.fixture
def changed(made: Made, tmp_path: Path) -> Callable[[str, Damage], tuple[Path, Path]]:
    """Base and a damaged copy of the edited checkpoint."""

    def make(kind: str, damage: Damage) -> tuple[Path, Path]:
        base, edited = made(kind)
        shutil.copytree(edited, tmp_path / "copy")
        damage(tmp_path / "copy")
        return base, tmp_path / "copy"

    return make


def _verify(edited: Path, base: Path | None) -> tuple[int, int]:
    return verify(open_folder(edited), open_folder(base) if base else None)


def _flip(name: str, at: int = 0) -> Damage:
    """Flip the lowest bit of a tensor's byte ``at``."""

    def damage(folder: Path) -> None:
        info = open_index(folder).tensors[name]
        data = bytearray((folder / info.shard).read_bytes())
        data[info.start + at] ^= 1
        (folder / info.shard).write_bytes(data)

    return damage


def _without(name: str) -> Damage:
    """Drop a tensor from its file, and from the index."""

    def damage(folder: Path) -> None:
        index = open_index(folder)
        where = {n: info.shard for n, info in index.tensors.items()}
        tensors = {n: t for n, t in tensors_of(folder).items() if n != name}
        store(folder, tensors, where.__getitem__ if len(index.shards) > 1 else None)

    return damage


def _unlink(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def _swap_shards(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    first.rename(folder / "kept")
    second.rename(first)
    (folder / "kept").rename(second)


def _proof(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        document = json.loads((folder / PROOF).read_text(encoding="utf-8"))
        change(document)
        (folder / PROOF).write_text(json.dumps(document), encoding="utf-8")

    return damage


def _entry(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    return _proof(lambda document: change(next(e for e in document["tensors"] if e["name"] == name)))


def _figure(field: str, value: Any) -> Damage:
    return _entry(DOWN, lambda entry: entry.__setitem__(field, value))


def _fitting(**shares: float) -> Damage:
    """Figures of one tensor times a share, and every figure that the proof itself allows to derive from them."""

    def change(document: dict[str, Any]) -> None:
        entry = next(e for e in document["tensors"] if e["name"] == DOWN)
        entry |= {what: entry[what] * share for what, share in shares.items()}
        entry["left"] = entry["after"] / entry["before"]
        document["worst"]["left"] = max(e["left"] for e in document["tensors"])

    return _proof(change)


def _other_plan(folder: Path) -> None:
    edit = load_edit(folder / PLAN)
    save_edit(edit_from_direction(torch.ones(edit.direction.shape[-1]), edit.layers, policy=edit.embedding), folder / PLAN)


def _weaker_plan(folder: Path) -> None:
    save_edit(load_edit(folder / PLAN).scaled(0.9), folder / PLAN)


def _plan_of_fewer_layers(folder: Path) -> None:
    edit = load_edit(folder / PLAN)
    strength = edit.strength.clone()
    strength[2, 1] = 0
    save_edit(replace(edit, strength=strength), folder / PLAN)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_base", [False, True], ids=["alone", "with its base"])
def test_a_good_checkpoint_holds(kind: str, with_base: bool, made: Made) -> None:
    base, edited = made(kind)
    heard: list[int] = []
    measured, compared = verify(open_folder(edited), open_folder(base) if with_base else None, heard.append)
    proof = json.loads((edited / PROOF).read_text(encoding="utf-8"))
    assert measured == len(proof["tensors"]) > 0
    assert compared == (len(open_index(edited).tensors) if with_base else 0)
    assert sum(heard) == measured + compared


def test_the_self_check_of_the_edit_serves_wherever_the_checkpoint_lies(
    changed: Callable[[str, Damage], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, edited = changed("single", lambda folder: None)
    monkeypatch.setattr(selfcheck, "_checked", lambda *given: pytest.fail("made again"))
    assert _verify(edited, base)[0] == 9


ALONE: dict[str, tuple[str, Damage, str]] = {
    "a flipped byte of an edited tensor": ("single", _flip(DOWN), DOWN),
    "a flipped byte of an edited tensor in a shard": ("sharded", _flip(DOWN, 77), DOWN),
    "a flipped byte of the edited embedding": ("untied", _flip("model.embed_tokens.weight", 9), "model.embed_tokens.weight"),
    "a flipped byte of FP8 weights": ("fp8", _flip(FP8_DOWN), FP8_DOWN),
    "a flipped byte of FP8 scales": ("fp8", _flip(f"{FP8_DOWN}_scale_inv"), FP8_DOWN),
    "a flipped byte of unpacked experts": ("mxfp4", _flip(f"{EXPERTS}.down_proj", 5), f"{EXPERTS}.down_proj"),
    "two shards that changed names": ("sharded", _swap_shards, "index.json"),
    "a missing writer": ("single", _without(DOWN), "mlp.down_proj.weight"),
    "a missing writer of a shard": ("sharded", _without(DOWN), "mlp.down_proj.weight"),
    "a missing edited embedding": ("single", _without("model.embed_tokens.weight"), "model.embed_tokens.weight"),
    "a missing shard": ("sharded", _unlink("model-00002-of-00006.safetensors"), "model-00002-of-00006.safetensors"),
    "a missing index": ("sharded", _unlink("model.safetensors.index.json"), "model.safetensors.index.json"),
    "a tensor too many": ("single", lambda folder: store(folder, tensors_of(folder) | {"x": torch.ones(1)}), "(first: x)"),
    "a file cut short": ("single", lambda folder: _cut(folder / "model.safetensors"), "model.safetensors"),
    "a proof of one tensor less": ("single", _proof(lambda d: d["tensors"].pop()), "doesn't list it"),
    "a proof of one tensor more": ("single", _proof(lambda d: d["tensors"].append({**d["tensors"][0], "name": QUERY})), QUERY),
    "a proof that lists a tensor twice": ("single", _proof(lambda d: d["tensors"].append(d["tensors"][0])), "twice"),
    "another after": ("single", _figure("after", 0.5), DOWN),
    "another after within rounding": ("half strength", _fitting(after=1.0005), f"{DOWN} holds"),
    "another before that fits after and left": ("half strength", _fitting(before=1.01), f"{DOWN}: aim is"),
    "another left": ("single", _figure("left", 0.0), DOWN),
    "another aim": ("single", _figure("aim", 1.0), DOWN),
    "another before": ("single", _figure("before", 9.0), DOWN),
    "another strength": ("single", _figure("strength", 0.9), DOWN),
    "another kind": ("single", _figure("kind", "attention"), DOWN),
    "another shape": ("single", _figure("shape", [64, 32]), DOWN),
    "another type": ("single", _figure("dtype", "BF16"), DOWN),
    "another hash": ("single", _figure("blake3_after", "0" * 64), DOWN),
    "another worst figure": ("single", _proof(lambda d: d["worst"].update(left=0.0)), "worst"),
    "writers that the proof hides": ("post-norm", _proof(lambda d: d["not_edited"].clear()), "not_edited"),
    "another embedding policy": ("single", _proof(lambda d: d["embedding"].update(policy="skip")), "embedding"),
    "norms said to be kept": ("single", _proof(lambda d: d.update(norms="keep")), "norms"),
    "a plan of another direction": ("single", _other_plan, "model.layers"),
    "a plan of another direction beside shards": ("sharded", _other_plan, "model.layers"),
    "a plan of less strength": ("single", _weaker_plan, "model.layers"),
    "a plan that edits less": ("single", _plan_of_fewer_layers, DOWN),
    "a config that ties what isn't tied": ("single", lambda folder: set_config(folder, tie_word_embeddings=True), "tie_word_embeddings"),
    "a config that unties what is tied": ("tied", lambda folder: set_config(folder, tie_word_embeddings=False), "tie_word_embeddings"),
    "a config that ties what was untied": ("untied", lambda folder: set_config(folder, tie_word_embeddings=True), "tie_word_embeddings"),
    "a config of another width": ("single", lambda folder: set_config(folder, hidden_size=64), "width"),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(("kind", "damage", "named"), ALONE.values(), ids=ALONE)
def test_what_was_changed_afterwards_is_named_without_the_base(
    kind: str, damage: Damage, named: str, changed: Callable[[str, Damage], tuple[Path, Path]]
) -> None:
    with pytest.raises(CheckError) as error:
        _verify(changed(kind, damage)[1], None)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_an_adapter_beside_the_weights_is_told_without_the_base_too(changed: Callable[[str, Damage], tuple[Path, Path]]) -> None:
    with pytest.raises(CheckError, match=r"holds adapter_config\.json beside full weights"):
        _verify(changed("single", lambda folder: (folder / "adapter_config.json").write_text("{}"))[1], None)


WITH_BASE: dict[str, tuple[str, Damage, str]] = {
    "a flipped byte of another tensor": ("single", _flip(QUERY, 6), f"{QUERY} differs from the base at its byte 6,"),
    "a flipped byte of another tensor in a shard": ("sharded", _flip(QUERY), f"{QUERY} differs from the base at its byte 0,"),
    "a flipped byte of the new unembedding": ("untied", _flip("lm_head.weight", 3), "lm_head.weight differs from the base at its byte 3,"),
    "a flipped byte of unpacked experts that were not edited": ("mxfp4", _flip(f"{EXPERTS}.gate_up_proj", 8), f"{EXPERTS}.gate_up_proj"),
    "a flipped byte of scales that were not edited": (
        "fp8", _flip("model.layers.0.mlp.up_proj.weight_scale_inv"), "layers.0.mlp.up_proj.weight_scale_inv"
    ),
    "a missing tensor": ("single", _without(QUERY), QUERY),
    "a missing tensor of a shard": ("sharded", _without(QUERY), QUERY),
    "a missing unembedding": ("untied", _without("lm_head.weight"), "lm_head.weight"),
    "another before that fits": ("half strength, norms kept", _fitting(before=1.01), f"{DOWN}: before is"),
    "another aim within rounding": ("half strength, norms kept", _fitting(aim=1.0005), f"{DOWN}: aim is"),
    "another before and aim that fit": ("half strength", _fitting(before=1.0005, aim=1.0005), f"{DOWN}: before is"),
    "another error": ("single", _figure("error", 0.0), DOWN),
    "another hash of what was edited": ("single", _figure("blake3_before", "0" * 64), DOWN),
    "another rounding error": (
        "fp8",
        _entry(FP8_DOWN, lambda e: e.update(rounding=e["rounding"] / 2)),
        FP8_DOWN,
    ),
    "modules said not to be unpacked": ("mxfp4", _proof(lambda d: d["unpacked"].clear()), "unpacked"),
    "a changed tokenizer": ("single", lambda folder: _append(folder / "tokenizer.json"), "tokenizer.json: differs from"),
    "a missing tokenizer": ("single", _unlink("tokenizer_config.json"), "tokenizer_config.json: is missing"),
    "a changed template": ("sharded", lambda folder: _append(folder / "chat_template.jinja"), "chat_template.jinja: differs from"),
    "an adapter put beside the weights": (
        "single", lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapter_config.json: is not in the base"
    ),
    "a changed config": ("single", lambda folder: set_config(folder, rms_norm_eps=0.5), "config.json: differs from"),
    "a changed config of an untied checkpoint": ("untied", lambda folder: set_config(folder, rms_norm_eps=0.5), "config.json: differs"),
    "a changed config of an unpacked checkpoint": ("mxfp4", lambda folder: set_config(folder, rms_norm_eps=0.5), "config.json: differs"),
}  # fmt: skip


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize(("kind", "damage", "named"), WITH_BASE.values(), ids=WITH_BASE)
def test_what_was_changed_afterwards_is_named_with_the_base(
    kind: str, damage: Damage, named: str, changed: Callable[[str, Damage], tuple[Path, Path]]
) -> None:
    base, edited = changed(kind, damage)
    with pytest.raises(CheckError) as error:
        _verify(edited, base)
    assert named in str(error.value) and "\n" not in str(error.value)


def _with_a_proof_to_match(base: Path, edited: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change an edited tensor's stored values and give it the figures of a proof that was made from them."""
    where = open_index(edited)
    tensors = tensors_of(edited)
    tensors[name] = change(tensors[name])
    store(edited, tensors, (lambda n: where.tensors[n].shard) if len(where.shards) > 1 else None)
    edit = load_edit(edited / PLAN)
    before, _ = stream.edited(open_index(base), edit_tasks(open_index(base), open_folder(base), edit)[name])
    made = measure(open_index(edited), edit_tasks(open_index(edited), open_folder(edited), edit)[name], before)
    _entry(name, lambda entry: entry.update(made.document()))(edited)
    _proof(lambda d: d.update(worst={what: max(entry[what] for entry in d["tensors"]) for what in ("left", "error")}))(edited)


def _next(bits: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    """Another rounding of one value."""

    def change(stored: torch.Tensor) -> torch.Tensor:
        codes = stored.view(bits).clone()
        codes.view(-1)[7] ^= 1
        return codes.view(stored.dtype)

    return change


@pytest.mark.parametrize(
    ("kind", "name", "bits"),
    [("single", DOWN, torch.int32), ("sharded", DOWN, torch.int16), ("fp8", FP8_DOWN, torch.uint8),
     ("mxfp4", f"{EXPERTS}.down_proj", torch.int16)],
)  # fmt: skip
def test_what_another_machine_would_round_otherwise_holds(
    kind: str, name: str, bits: torch.dtype, changed: Callable[[str, Damage], tuple[Path, Path]]
) -> None:
    base, edited = changed(kind, lambda folder: None)
    _with_a_proof_to_match(base, edited, name, _next(bits))
    assert open_index(edited).read(name).view(bits).ne(open_index(base.parent / "edited").read(name).view(bits)).sum() == 1
    assert _verify(edited, base)[1] == len(open_index(edited).tensors)


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [("single", DOWN, lambda w: w * 1.0001), ("single", DOWN, lambda w: w.roll(1, dims=1)), ("sharded", DOWN, lambda w: w * 1.01),
     ("fp8", FP8_DOWN, lambda w: w.view(torch.uint8).roll(1, dims=1).view(w.dtype)), ("mxfp4", f"{EXPERTS}.down_proj", lambda w: w * 1.01)],
    ids=["float32 a little longer", "float32 in another order", "bf16 a little longer", "fp8 in another order", "unpacked, longer"],
)  # fmt: skip
def test_other_weights_without_the_direction_do_not_hold_with_the_base_whatever_the_proof_says(
    kind: str, name: str, change: Callable[[torch.Tensor], torch.Tensor], changed: Callable[[str, Damage], tuple[Path, Path]]
) -> None:
    base, edited = changed(kind, lambda folder: None)
    _with_a_proof_to_match(base, edited, name, lambda stored: change(stored).contiguous())
    assert _verify(edited, None)[1] == 0
    with pytest.raises(CheckError, match=re.escape(f"{name} is not the result of editing the base's tensor")):
        _verify(edited, base)


@pytest.mark.parametrize("kind", ["single", "sharded", "tied", "mxfp4"])
def test_an_untouched_tensor_is_looked_at_only_with_the_base(kind: str, changed: Callable[[str, Damage], tuple[Path, Path]]) -> None:
    base, edited = changed(kind, _flip(QUERY))
    assert _verify(edited, None)[1] == 0
    with pytest.raises(CheckError, match="q_proj"):
        _verify(edited, base)


@pytest.mark.parametrize(
    ("kind", "damage", "named"),
    [("single", _flip(DOWN), f"{DOWN} is not the tensor that was edited"), ("single", _flip(QUERY), f"{QUERY} differs from the base"),
     ("fp8", _flip(f"{FP8_DOWN}_scale_inv"), f"{FP8_DOWN} is not the tensor that was edited"),
     ("mxfp4", _flip(f"{EXPERTS}.down_proj_blocks"), f"{EXPERTS}.down_proj is not the tensor that was edited"),
     ("mxfp4", _flip(f"{EXPERTS}.down_proj_scales"), f"{EXPERTS}.down_proj is not the tensor that was edited"),
     ("mxfp4", _flip(f"{EXPERTS}.gate_up_proj_scales"), f"{EXPERTS}.gate_up_proj is not the result of unpacking the base's tensor")],
    ids=["edited", "not edited", "scales", "packed blocks", "packed scales", "packed and not edited"],
)  # fmt: skip
def test_another_base_is_told_apart_by_one_bit(kind: str, damage: Damage, named: str, made: Made, tmp_path: Path) -> None:
    base, edited = made(kind)
    shutil.copytree(base, tmp_path / "other")
    damage(tmp_path / "other")
    with pytest.raises(CheckError) as error:
        _verify(edited, tmp_path / "other")
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("other", "named"),
    [({"seed": 1}, "lm_head.weight differs"), ({"attention_bias": True}, "_proj.bias is missing"), ({"tied": True}, "lm_head.weight"),
     ({"dtype": torch.bfloat16}, "BF16"), ({"shards": "20KB"}, "model-0000")],
    ids=["seed", "biases", "tied", "type", "shards"],
)  # fmt: skip
def test_another_base_of_the_same_shape_does_not_hold(other: dict[str, Any], named: str, made: Made, tmp_path: Path) -> None:
    with pytest.raises(CheckError) as error:
        _verify(made("single")[1], save_tiny(tmp_path / "other", **other))
    assert named in str(error.value)


def test_a_base_of_another_size_is_bad_input(made: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 2 of width 32"):
        _verify(made("single")[1], save_tiny(tmp_path / "other", layers=2))


def test_the_edited_checkpoint_is_not_its_own_base(made: Made) -> None:
    edited = made("single")[1]
    with pytest.raises(CheckError, match="is not the tensor that was edited"):
        _verify(edited, edited)


@pytest.mark.parametrize(
    "damage",
    [
        _unlink(PROOF),
        _proof(lambda d: d.update(schema="abliterate/abliteration/1")),
        _proof(lambda d: d.pop("schema")),
        _proof(lambda d: d.pop("tensors")),
        _proof(lambda d: d.pop("embedding")),
        _proof(lambda d: d.update(worst=None)),
        _proof(lambda d: d.update(tensors=["model.embed_tokens.weight"])),
        _figure("before", None),
        _figure("aim", "0"),
        _figure("shape", 3),
        _figure("name", ["x"]),
        _entry(DOWN, lambda entry: entry.pop("blake3_after")),
        lambda folder: (folder / PROOF).write_text("[" * 100_000),
        lambda folder: (folder / PROOF).write_text("[]"),
        lambda folder: (folder / PROOF).write_bytes(b"\xff"),
    ],
    ids=["missing", "schema 1", "no schema", "no tensors", "no embedding", "no worst", "names", "null", "text", "shape", "a list as name",
         "no hash", "deep", "a list", "not text"],
)  # fmt: skip
def test_without_a_proof_of_this_schema_there_is_nothing_to_check(
    damage: Damage, changed: Callable[[str, Damage], tuple[Path, Path]]
) -> None:
    with pytest.raises(InputError, match=r"no abliteration\.json of schema abliterate/abliteration/2") as error:
        _verify(changed("single", damage)[1], None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "other",
    [
        *(_proof(lambda d, key=key: d.pop(key)) for key in ("base_revision", "licence", "abliterate", "formula", "self_check")),
        _proof(lambda d: d.update(signed={"by": ["x"]}, licence=None)),
        _proof(lambda d: d["licence"].update(terms="x")),
        _proof(lambda d: d["self_check"].update(device="cpu")),
        _figure("measured", "twice"),
        _figure("strength", 1),
    ],
)
def test_a_proof_of_an_earlier_or_a_later_version_is_read(other: Damage, changed: Callable[[str, Damage], tuple[Path, Path]]) -> None:
    base, edited = changed("single", other)
    assert _verify(edited, base) == (9, 39)


def test_without_its_plan_there_is_nothing_to_check(changed: Callable[[str, Damage], tuple[Path, Path]]) -> None:
    with pytest.raises(InputError, match=r"abliteration\.plan: no such file"):
        _verify(changed("single", _unlink(PLAN))[1], None)


def test_a_new_card_changes_nothing_that_was_proven(changed: Callable[[str, Damage], tuple[Path, Path]]) -> None:
    base, edited = changed("single", lambda folder: (folder / "README.md").write_text("another card"))
    (edited / ".gitattributes").write_text("* -text")
    (edited / "LICENSE").write_text("as the base")
    assert _verify(edited, base) == (9, len(open_index(base).tensors))


def test_the_new_unembedding_of_a_sharded_checkpoint_has_its_own_shard(made: Made) -> None:
    assert open_index(made("untied")[1]).tensors["lm_head.weight"].shard == UNTIED_SHARD


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 50))
def test_what_the_proof_allows_verify_allows_too(seed: int, strength: float, along: float) -> None:
    """Though the tensor is smaller by then, by most of its length where it lay along the direction."""
    chance = torch.Generator().manual_seed(seed)
    r = torch.nn.functional.normalize(torch.randn(8, generator=chance, dtype=torch.float64), dim=0)
    weight = torch.randn(8, 3, generator=chance, dtype=torch.float64) + along * r[:, None]
    edited = weight - strength * torch.outer(r, r @ weight)
    for tolerance in (1e-3, 1e-6):
        assert allowed(tolerance, float(edited.norm()), float((r @ weight).norm())) >= tolerance * float(weight.norm()) * (1 - 1e-12)
