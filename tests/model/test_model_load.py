"""Loading: the model is the folder's, whole, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer
from safetensors.torch import load_file, save_file

from abliterate.checkpoint.index import SINGLE
from abliterate.errors import InputError
from abliterate.model.load import load_model, pick_device, pick_dtype


def test_weights_and_types_are_the_folders(tiny: Callable[..., Path]) -> None:
    folder = tiny(dtype=torch.bfloat16)
    model = load_model(folder, "float32", "cpu")
    stored = load_file(folder / SINGLE)
    loaded = model.module.state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in stored.items())
    assert not model.module.training
    assert not any(p.requires_grad for p in model.module.parameters())


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
