"""Edits of quantised checkpoints: FP8 stays FP8, experts leave MXFP4, and every other format is refused by its name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packed import FP8_SETTINGS, MXFP4_SETTINGS, save_architecture, save_fp8, save_mxfp4, set_config, store, tensors_of
from torch import Tensor
from transformers import AutoModelForCausalLM, Mxfp4Config
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.checkpoint.records import Proof
from abliterate.cli.main import main
from abliterate.compute.load import from_pretrained
from abliterate.errors import InputError
from abliterate.model.edit import Edit, edit_from_direction
from abliterate.model.folder import open_folder
from abliterate.model.formats import fp8
from abliterate.model.formats.fp8 import SCALES
from abliterate.model.formats.mxfp4 import BLOCKS, EXPONENTS
from abliterate.model.index import INDEX, open_index

FP8_WRITERS = ("self_attn.o_proj", "mlp.down_proj", "down_proj")
EXPERTS = "model.layers.{}.mlp.experts"


def _unit(d_model: int) -> Tensor:
    r = torch.randn(d_model, generator=torch.Generator().manual_seed(11))
    return r / r.norm()


def _plan(path: Path, **how: Any) -> Edit:
    folder = open_folder(path)
    return edit_from_direction(_unit(folder.d_model), folder.layers, **how)


def _edit(path: Path, out: Path, edit: Edit | None = None) -> Proof:
    return edit_checkpoint(open_folder(path), edit or _plan(path), out, "base", lambda proof: "card\n").proof


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy())


def _values(tensors: dict[str, Tensor], name: str) -> Tensor:
    """A stored matrix in float64, FP8 by its scales."""
    return (fp8.dequantise(tensors[name], tensors[name + SCALES]) if name + SCALES in tensors else tensors[name]).double()


def _left(tensors: dict[str, Tensor], name: str, r: Tensor) -> float:
    """What a matrix [d_model, in] writes along r, relative to its norm."""
    weight = _values(tensors, name)
    return float((r.double() @ weight).norm() / weight.norm())


def _fp8_writers(tensors: dict[str, Tensor]) -> list[str]:
    return [name for name, t in tensors.items() if t.dtype == fp8.FP8 and name.endswith(("o_proj.weight", "down_proj.weight"))]


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        made: Tensor = model(input_ids=torch.arange(3, 43)[None], use_cache=False).logits.float()
    return made


@pytest.fixture(scope="module")
def fp8_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Proof]:
    """A DeepSeek-V3 in FP8, its edit, and the proof."""
    place = tmp_path_factory.mktemp("fp8")
    save_fp8(place / "base", sharded=True)
    return place / "base", place / "edited", _edit(place / "base", place / "edited")


@pytest.fixture(scope="module")
def mxfp4_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Proof]:
    """A gpt-oss in MXFP4, its edit, and the proof."""
    place = tmp_path_factory.mktemp("mxfp4")
    save_mxfp4(place / "base")
    return place / "base", place / "edited", _edit(place / "base", place / "edited")


def test_no_fp8_writer_keeps_anything_along_r(fp8_pair: tuple[Path, Path, Proof]) -> None:
    base, edited, proof = fp8_pair
    before, after, r = tensors_of(base), tensors_of(edited), _unit(256)
    writers = _fp8_writers(before)
    assert len(writers) == 2 + 1 + 4 + 1  # attention; dense, routed and shared experts
    assert set(writers) | {"model.embed_tokens.weight"} == {entry.name for entry in proof.tensors}
    for name in writers:
        assert _left(after, name, r) <= 1e-3 < 1e-2 < _left(before, name, r)


def test_an_edited_fp8_checkpoint_loads_dequantised_without_r(fp8_pair: tuple[Path, Path, Proof]) -> None:
    base, edited, _ = fp8_pair
    r = _unit(256)

    def load(path: Path) -> Any:
        model, info = from_pretrained(open_folder(path), torch.float32)
        assert not info["missing_keys"] and not info["mismatched_keys"]
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        return model

    old, new = load(base), load(edited)
    with torch.no_grad():
        found = 0
        for (name, was), (_, weight) in zip(old.named_parameters(), new.named_parameters(), strict=True):
            if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")):
                found += 1
                assert float((r @ weight).norm() / weight.norm()) <= 1e-3 < 1e-2 < float((r @ was).norm() / was.norm())
            elif "embed_tokens" not in name:
                assert torch.equal(was, weight)
        states = new(input_ids=torch.arange(3, 43)[None], output_hidden_states=True).hidden_states[:-1]
    assert found == 2 + 1 + 1 + 1  # the routed experts are one tensor in memory
    assert all(float((s @ r).abs().max() / s.norm(dim=-1).max()) < 1e-3 for s in states)


def test_scales_stay_positive_and_finite_in_their_type(fp8_pair: tuple[Path, Path, Proof]) -> None:
    base, edited, _ = fp8_pair
    before, after = tensors_of(base), tensors_of(edited)
    scales = [name + SCALES for name in _fp8_writers(before)]
    assert all(bool((after[name].isfinite() & (after[name] > 0)).all()) for name in scales)
    assert any(not torch.equal(after[name], before[name]) for name in scales)
    assert all(bool(after[name.removesuffix(SCALES)].float().isfinite().all()) for name in scales)


def test_an_fp8_file_keeps_names_shapes_types_places_and_what_is_not_edited(fp8_pair: tuple[Path, Path, Proof]) -> None:
    base, edited, proof = fp8_pair
    source, written = open_index(base), open_index(edited)
    assert {n: (i.shard, i.dtype, i.shape) for n, i in source.tensors.items()} == {
        n: (i.shard, i.dtype, i.shape) for n, i in written.tensors.items()
    }
    assert all((written.shards[name] - size) % 4096 == 0 for name, size in source.shards.items())
    assert (edited / INDEX).read_bytes() == (base / INDEX).read_bytes()
    assert (edited / "config.json").read_bytes() == (base / "config.json").read_bytes()
    names = {entry.name for entry in proof.tensors}
    touched = names | {name + SCALES for name in names}
    rest = source.tensors.keys() - touched
    assert len(rest) > 20 and any(name.endswith(SCALES) for name in rest)
    assert all(_bytes(source.read(name)) == _bytes(written.read(name)) for name in rest)
    assert all(_bytes(source.read(name)) != _bytes(written.read(name)) for name in names)


def test_the_proof_says_what_rounding_costs(fp8_pair: tuple[Path, Path, Proof]) -> None:
    base, edited, proof = fp8_pair
    before, after, r = tensors_of(base), tensors_of(edited), _unit(256).double()
    for entry in proof.tensors:
        if entry.dtype != "F8_E4M3":
            assert entry.rounding is None and entry.plain_rounding is None
            continue
        old, new = _values(before, entry.name), _values(after, entry.name)
        exact = old - r[:, None] * (r @ old)
        assert entry.rounding == pytest.approx(float((new - exact).norm() / exact.norm()), rel=1e-4)
        assert 0.005 < entry.plain_rounding <= entry.rounding < 0.05
        assert entry.error <= 1e-3


@pytest.mark.parametrize("scales", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu], ids=["float32", "bf16", "e8m0"])
def test_scales_that_are_powers_of_two_stay_so(scales: torch.dtype, tmp_path: Path) -> None:
    save_fp8(tmp_path / "base", "llama", layers=1, scales=scales, powers=True)
    _edit(tmp_path / "base", tmp_path / "edited")
    before, after = tensors_of(tmp_path / "base"), tensors_of(tmp_path / "edited")
    for name in _fp8_writers(after):
        assert after[name + SCALES].dtype == scales
        assert bool((after[name + SCALES].float().log2() % 1 == 0).all())
        assert _left(after, name, _unit(256)) <= 1e-3 < 1e-2 < _left(before, name, _unit(256))
        assert float(after[name].float().abs().max()) > 224 * 0.95  # the power of two above would have left a bit unused
        old = _values(before, name)
        exact = old - _unit(256).double()[:, None] * (_unit(256).double() @ old)
        assert float((_values(after, name) - exact).norm() / old.norm()) < 0.05
        units = after[name + SCALES].float().repeat_interleave(128, 0).repeat_interleave(128, 1)[:, : exact.shape[1]]
        assert bool((exact.abs() <= 448 * units).all())  # the power of two below would have been too small


def test_without_scale_fmt_scales_are_not_powers_of_two(fp8_pair: tuple[Path, Path, Proof]) -> None:
    after = tensors_of(fp8_pair[1])
    assert all(bool((after[name + SCALES].log2() % 1 != 0).any()) for name in _fp8_writers(after))


def test_bands_of_columns_leave_as_little_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_fp8(tmp_path / "base", "llama", layers=1, num_attention_heads=4)
    tensors = tensors_of(tmp_path / "base")
    name = "model.layers.0.mlp.down_proj.weight"
    assert tensors[name].shape[1] < 128  # one band; a wider one is made below
    for suffix in ("mlp.down_proj", "mlp.up_proj", "mlp.gate_proj"):
        shape = (256, 600) if suffix == "mlp.down_proj" else (600, 256)
        wide = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        whole = f"model.layers.0.{suffix}.weight"
        tensors[whole], tensors[whole + SCALES] = fp8.requantise(wide, torch.zeros(0, shape[0]))
    store(tmp_path / "base", tensors)
    set_config(tmp_path / "base", intermediate_size=600)
    whole = _edit(tmp_path / "base", tmp_path / "whole")
    monkeypatch.setattr(fp8, "BAND", 256 * 130)
    banded = _edit(tmp_path / "base", tmp_path / "banded")
    for one, other in zip(whole.tensors, banded.tensors, strict=True):
        for figure, near in (("before", 1e-6), ("rounding", 0.05), ("plain_rounding", 1e-3)):
            a, b = getattr(one, figure), getattr(other, figure)
            assert a == b is None or a == pytest.approx(b, rel=near)
        assert max(one.error, other.error) < 1e-3
    assert _left(tensors_of(tmp_path / "banded"), name, _unit(256)) <= 1e-3 < 1e-2 < _left(tensors, name, _unit(256))


def test_half_strength_leaves_half_in_fp8(tmp_path: Path) -> None:
    save_fp8(tmp_path / "base", "llama", layers=1)
    _edit(tmp_path / "base", tmp_path / "edited", _plan(tmp_path / "base", strength=0.5))
    before, after, r = tensors_of(tmp_path / "base"), tensors_of(tmp_path / "edited"), _unit(256).double()
    for name in _fp8_writers(after):
        old, new = r @ _values(before, name), r @ _values(after, name)
        assert float((new - old / 2).norm() / _values(before, name).norm()) <= 1e-3 < float(old.norm() / _values(before, name).norm())


@pytest.mark.parametrize("block", [[128], [0, 128], "128"])
def test_fp8_without_block_scales_is_refused(block: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_architecture(tmp_path / "base", "llama")
    capsys.readouterr()
    set_config(tmp_path / "base", quantization_config={**FP8_SETTINGS, "weight_block_size": block})
    assert main(["plan", "--model", str(tmp_path / "base")]) == 2
    assert _one_line(capsys).count("weight_block_size") == 1


def test_an_fp8_tensor_without_its_scale_is_refused(tmp_path: Path) -> None:
    save_fp8(tmp_path / "base", "llama", layers=2)
    tensors = tensors_of(tmp_path / "base")
    del tensors["model.layers.1.mlp.down_proj.weight_scale_inv"]
    store(tmp_path / "base", tensors)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.down_proj\.weight is stored as FP8 without"):
        _edit(tmp_path / "base", tmp_path / "edited")
    assert not (tmp_path / "edited").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_fp8_scale_that_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    save_fp8(tmp_path / "base", "llama", layers=1)
    tensors = tensors_of(tmp_path / "base")
    tensors["model.layers.0.mlp.down_proj.weight_scale_inv"][0, 0] = value
    store(tmp_path / "base", tensors)
    with pytest.raises(InputError, match="NaN or infinity"):
        _edit(tmp_path / "base", tmp_path / "edited")
    assert not (tmp_path / "edited").exists()


def test_experts_of_every_edited_module_become_bf16_in_out(mxfp4_pair: tuple[Path, Path, Proof]) -> None:
    base, edited, proof = mxfp4_pair
    before, after, r = tensors_of(base), tensors_of(edited), _unit(64).double()
    assert proof.unpacked == (EXPERTS.format(0), EXPERTS.format(1))
    assert not [name for name in after if name.endswith((BLOCKS, EXPONENTS))]
    for layer in range(2):
        for part, shape in (("gate_up_proj", (4, 64, 128)), ("down_proj", (4, 64, 64))):
            name = f"{EXPERTS.format(layer)}.{part}"
            assert after[name].dtype == torch.bfloat16 and after[name].shape == shape
            old = convert_moe_packed_tensors(before[name + BLOCKS], before[name + EXPONENTS], dtype=torch.bfloat16)
            if part == "gate_up_proj":
                assert _bytes(after[name]) == _bytes(old)
                continue
            weight, was = after[name].double(), old.double()
            exact = was - (was @ r)[..., None] * r
            assert float((weight @ r).norm() / was.norm()) <= 1e-3 < 1e-2 < float((was @ r).norm() / was.norm())
            assert float((weight - exact).norm() / was.norm()) < 4e-3  # rounded once, to nearest
    same = [name for name in before if name in after and name not in {entry.name for entry in proof.tensors}]
    assert len(same) > 15 and all(_bytes(before[name]) == _bytes(after[name]) for name in same)


def test_a_checkpoint_with_nothing_packed_left_is_not_called_quantised(mxfp4_pair: tuple[Path, Path, Proof]) -> None:
    base, edited, _ = mxfp4_pair
    old, new = (json.loads((path / "config.json").read_text(encoding="utf-8")) for path in (base, edited))
    assert old.pop("quantization_config") == MXFP4_SETTINGS
    assert new == old


def test_the_unpacked_checkpoint_computes_what_the_packed_one_would_without_r(mxfp4_pair: tuple[Path, Path, Proof]) -> None:
    base, edited, _ = mxfp4_pair
    model, info = AutoModelForCausalLM.from_pretrained(edited, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    expected = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)).float()
    whole, r = _logits(expected), _unit(64)
    with torch.no_grad():
        expected.model.embed_tokens.weight -= expected.model.embed_tokens.weight @ r[:, None] * r
        for layer in expected.model.layers:
            layer.self_attn.o_proj.weight -= r[:, None] * (r @ layer.self_attn.o_proj.weight)
            layer.self_attn.o_proj.bias -= r * (r @ layer.self_attn.o_proj.bias)
            layer.mlp.experts.down_proj -= layer.mlp.experts.down_proj @ r[:, None] * r
            layer.mlp.experts.down_proj_bias -= layer.mlp.experts.down_proj_bias @ r[:, None] * r
    wanted, got = _logits(expected), _logits(model)
    assert float((got - wanted).norm() / wanted.norm()) < 2e-2 < 0.1 < float((whole - wanted).norm() / wanted.norm())


def _one_layer(path: Path) -> Edit:
    edit = _plan(path, policy="skip")
    strength = edit.strength.clone()
    strength[0] = 0
    return replace(edit, strength=strength)


@pytest.mark.parametrize("sharded", [False, True])
def test_where_some_layers_stay_packed_the_config_names_those_that_left(sharded: bool, tmp_path: Path) -> None:
    base, edited = save_mxfp4(tmp_path / "base", sharded=sharded), tmp_path / "edited"
    proof = _edit(base, edited, _one_layer(base))
    assert proof.unpacked == (EXPERTS.format(1),)
    settings = json.loads((edited / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    listed = "modules_to_not_convert"
    assert settings == {**MXFP4_SETTINGS, listed: [*MXFP4_SETTINGS[listed], EXPERTS.format(1)]}
    before, after = tensors_of(base), tensors_of(edited)
    packed = [f"{EXPERTS.format(0)}.{part}{end}" for part in ("down_proj", "gate_up_proj") for end in (BLOCKS, EXPONENTS)]
    assert sorted(name for name in after if name.endswith((BLOCKS, EXPONENTS))) == sorted(packed)
    assert all(_bytes(before[name]) == _bytes(after[name]) for name in packed)
    model, info = AutoModelForCausalLM.from_pretrained(
        edited, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True), output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for layer in range(2):
        for part in ("down_proj", "gate_up_proj"):
            name = f"{EXPERTS.format(layer)}.{part}"
            stored = after[name] if layer else convert_moe_packed_tensors(after[name + BLOCKS], after[name + EXPONENTS])
            assert torch.equal(model.get_parameter(name).float(), stored.float())


def test_the_index_of_a_sharded_checkpoint_names_what_the_shards_hold(tmp_path: Path) -> None:
    base, edited = save_mxfp4(tmp_path / "base", sharded=True), tmp_path / "edited"
    _edit(base, edited)
    content, index = json.loads((edited / INDEX).read_text(encoding="utf-8")), open_index(edited)
    assert content["weight_map"] == {name: info.shard for name, info in index.tensors.items()}
    assert content["metadata"] == {"note": "kept", "total_size": sum(info.nbytes for info in index.tensors.values())}
    assert content["weight_map"][f"{EXPERTS.format(1)}.down_proj"] == "model-00002-of-00003.safetensors"
    assert {path.name for path in edited.glob("*.safetensors")} == set(content["weight_map"].values())
    model, info = AutoModelForCausalLM.from_pretrained(edited, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(model.get_parameter(f"{EXPERTS.format(1)}.down_proj"), index.read(f"{EXPERTS.format(1)}.down_proj").float())


def test_packed_blocks_without_their_scales_are_refused(tmp_path: Path) -> None:
    base = save_mxfp4(tmp_path / "base")
    tensors = tensors_of(base)
    del tensors[f"{EXPERTS.format(1)}.down_proj{EXPONENTS}"]
    store(base, tensors)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts\.down_proj"):
        _edit(base, tmp_path / "edited")
    assert not (tmp_path / "edited").exists()


def test_plan_says_that_experts_leave_mxfp4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_mxfp4(tmp_path / "base")
    capsys.readouterr()
    assert main(["plan", "--model", str(base)]) == 0
    assert "the experts of 2 modules are converted from MXFP4 to bf16" in capsys.readouterr().out


def test_plan_of_fp8_says_nothing_of_mxfp4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_fp8(tmp_path / "base", "llama")
    capsys.readouterr()
    assert main(["plan", "--model", str(base)]) == 0
    printed = capsys.readouterr().out
    assert "MXFP4" not in printed and "edits        4 tensors" in printed


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("abliterate: ")
    return captured.err


@pytest.mark.parametrize(
    ("method", "named"),
    [
        ("gptq", "GPTQ"),
        ("awq", "AWQ"),
        ("bitsandbytes", "bitsandbytes"),
        ("compressed-tensors", "compressed-tensors"),
        ("new-one", "new-one"),
    ],
)
@pytest.mark.parametrize("nested", [False, True], ids=["", "in text_config"])
def test_other_formats_are_refused_by_their_name(
    method: str, named: str, nested: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_architecture(tmp_path / "base", "llama")
    capsys.readouterr()
    settings = {"quantization_config": {"quant_method": method, "bits": 4}}
    set_config(base, **({"text_config": settings} if nested else settings))
    (tmp_path / "r.safetensors").write_bytes(b"not read")
    call = ["edit", "--model", str(base), "--direction", str(tmp_path / "r.safetensors"), "--out", str(tmp_path / "edited")]
    assert main(call) == 2
    assert f"quantised ({named})" in _one_line(capsys)
    assert not (tmp_path / "edited").exists()
