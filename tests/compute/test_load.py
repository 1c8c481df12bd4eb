"""Loading: the model is the folder's, whole, or it is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer
from safetensors.torch import load_file, save_file

from abliterate.compute.load import pick_device, pick_dtype
from abliterate.compute.whole.model import load_model
from abliterate.errors import InputError
from abliterate.model.formats.fp8 import dequantise, requantise
from abliterate.model.index import SINGLE


def test_weights_and_types_are_the_folders(tiny: Callable[..., Path]) -> None:
    folder = tiny(dtype=torch.bfloat16)
    model = load_model(folder, "float32", "cpu")
    stored = load_file(folder / SINGLE)
    loaded = model.module.state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in stored.items())
    assert not model.module.training
    assert not any(p.requires_grad for p in model.module.parameters())


def test_weights_in_fp8_are_computed_as_what_their_scales_make_of_them(tiny: Callable[..., Path]) -> None:
    folder = tiny()
    tensors, meant = load_file(folder / SINGLE), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[name], tensors[f"{name}_scale_inv"] = requantise(tensors[name], torch.zeros(0, tensors[name].shape[0]), (16, 16))
        meant[name] = dequantise(tensors[name], tensors[f"{name}_scale_inv"], (16, 16))
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = load_model(folder, "float32", "cpu")
    loaded = model.module.state_dict()
    assert model.folder.quantisation == "fp8" and len(meant) == 28
    for name, weight in meant.items():
        torch.testing.assert_close(loaded[name], weight, rtol=1e-5, atol=0)
    with torch.no_grad():
        assert bool(model.module(torch.arange(20)[None]).logits.isfinite().all())


def test_modules_are_found_by_the_layouts_names_or_the_lack_of_one_is_said(tiny: Callable[..., Path]) -> None:
    model = load_model(tiny(), "float32", "cpu")
    assert model.block(3) is model.module.model.layers[3]
    assert model.part(model.folder.layout.embedding_module) is model.module.get_input_embeddings()
    for find in (lambda: model.block(4), lambda: model.part("model.absent")):
        with pytest.raises(InputError, match=r"no module 'model\.(layers\.4|absent)', which its layout 'llama' names"):
            find()


def test_a_model_is_loaded_with_the_users_layout(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('mlp = ["mlp.gate_proj"]', encoding="utf-8")
    assert load_model(tiny(), "float32", "cpu", layout=tmp_path / "mine.toml").folder.layout.name == "mine"


@pytest.mark.parametrize("lost", ["model.layers.1.self_attn.q_proj.weight", "lm_head.weight", "model.norm.weight"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(tiny: Callable[..., Path], lost: str) -> None:
    folder = tiny()
    tensors = load_file(folder / SINGLE)
    del tensors[lost]
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    with pytest.raises(InputError, match=lost):
        load_model(folder, "float32", "cpu")


@pytest.mark.parametrize("content", [b"", b"x" * 50, None])
def test_damaged_weights_are_refused(tiny: Callable[..., Path], content: bytes | None) -> None:
    folder = tiny()
    whole = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(whole[:-10] if content is None else content)
    with pytest.raises(InputError):
        load_model(folder, "float32", "cpu")


def test_a_tensor_of_another_shape_is_refused(tiny: Callable[..., Path]) -> None:
    folder = tiny()
    tensors = load_file(folder / SINGLE)
    tensors["model.norm.weight"] = torch.ones(7)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    with pytest.raises(InputError):
        load_model(folder, "float32", "cpu")


def test_pickled_weights_are_never_loaded(tiny: Callable[..., Path]) -> None:
    folder = tiny()
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()
    with pytest.raises(InputError):
        load_model(folder, "float32", "cpu")


def test_a_model_without_a_chat_template_is_refused(tiny: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="no chat template"):
        load_model(tiny(tokenizer=byte_tokenizer(None)), "float32", "cpu")


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", ""])
def test_a_device_that_isnt_there_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="can't be used here"):
        pick_device(name)


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [("auto", "cpu", torch.float32), ("auto", "cuda", torch.bfloat16), ("float16", "cpu", torch.float16)],
)
def test_auto_computes_in_float32_on_a_cpu(name: Any, device: str, expected: torch.dtype) -> None:
    assert pick_dtype(name, torch.device(device)) == expected
