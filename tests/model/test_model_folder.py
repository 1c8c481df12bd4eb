"""What a folder's config says, and that a broken one is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.errors import InputError
from abliterate.model.folder import open_folder
from abliterate.model.formats.format import StoredFormat
from abliterate.model.formats.fp8 import BlockFp8
from abliterate.model.formats.mxfp4 import Mxfp4
from abliterate.model.formats.plain import PLAIN

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def _with(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_figures_are_the_configs(tiny: Callable[..., Path], family: str, tied: bool) -> None:
    folder = open_folder(tiny(family, tied=tied, layers=3, d_model=16))
    assert (folder.model_type, folder.layers, folder.d_model, folder.tied) == (family, 3, 16, tied)


def test_the_figures_of_a_vision_language_model_are_its_text_models(tiny: Callable[..., Path]) -> None:
    text = json.loads((tiny(layers=3) / "config.json").read_text(encoding="utf-8"))
    folder = tiny()
    whole = {"model_type": "llava", "text_config": text, "vision_config": {"model_type": "clip_vision_model"}, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    found = open_folder(folder)
    assert (found.model_type, found.layers, found.d_model, found.config.model_type) == ("llava", 3, 32, "llama")
    assert found.layout.name == "llama"


BLOCKS = {"weight_block_size": [64, 128]}


@pytest.mark.parametrize(
    ("settings", "kind", "stored"),
    [
        ({"quant_method": "fp8", **BLOCKS}, "fp8", BlockFp8((64, 128))),
        ({"quant_method": "fp8", **BLOCKS, "scale_fmt": "ue8m0"}, "fp8", BlockFp8((64, 128), powers=True)),
        ({"quant_method": "mxfp4"}, "mxfp4", Mxfp4()),
        (None, None, PLAIN),
        ({}, None, PLAIN),
    ],
)
def test_a_format_that_can_be_edited_is_named(tiny: Callable[..., Path], settings: Any, kind: str | None, stored: StoredFormat) -> None:
    folder = open_folder(_with(tiny(), quantization_config=settings))
    assert (folder.quantisation, folder.stored) == (kind, stored)


@pytest.mark.parametrize(
    ("quantised", "says"),
    [
        ({"quant_method": "fp8"}, "FP8 weights without block scales"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "FP8 weights without block scales"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "FP8 weights without block scales"),
        ({"quant_method": "fp8", "weight_block_size": "128"}, "FP8 weights without block scales"),
        ({"quant_method": "gptq"}, r"quantised \(GPTQ\)"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"quantised \(bitsandbytes\)"),
        ({"quant_method": "tomorrows"}, r"quantised \(tomorrows\)"),
        ({"bits": 4}, r"quantised \(unknown\)"),
        ("fp8", r"quantised \(unknown\)"),
        (["gptq"], r"quantised \(unknown\)"),
        (4, r"quantised \(unknown\)"),
    ],
)
def test_quantised_weights_in_another_format_are_refused(tiny: Callable[..., Path], quantised: Any, says: str) -> None:
    with pytest.raises(InputError, match=f"{says}.*can't be edited exactly"):
        open_folder(_with(tiny(), quantization_config=quantised))


@pytest.mark.parametrize("model_type", ["bert", "rwkv"])
def test_an_architecture_without_layout_or_guess_is_refused(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    with pytest.raises(InputError, match=f"no layout for the architecture '{model_type}'.*--layout FILE.toml"):
        open_folder(tmp_path)


@pytest.mark.parametrize("model_type", ["nonsense", "Llama", "", None, 5])
def test_an_architecture_that_transformers_doesnt_know_is_refused(tiny: Callable[..., Path], model_type: Any) -> None:
    with pytest.raises(InputError, match=r"config\.json: transformers can't use it") as refused:
        open_folder(_with(tiny(), model_type=model_type))
    assert len(str(refused.value).splitlines()) == 1


def test_an_architecture_whose_writers_cant_be_edited_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "minimax"}', encoding="utf-8")
    with pytest.raises(InputError, match="'minimax' can't be edited exactly: its residual"):
        open_folder(tmp_path)


def test_a_users_layout_stands_before_the_tables(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('mlp = ["mlp.gate_proj"]', encoding="utf-8")
    found = open_folder(tiny(), layout=tmp_path / "mine.toml").layout
    assert (found.name, found.writers[1].weight) == ("mine", "mlp.gate_proj.weight")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"5", b'"x"', b"{}", b"\xff\xfe", b"[" * 200_000])
def test_a_config_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match="not a model config"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": v} for v in (None, "x", -1, 0, 1.5, [])] + [{"hidden_size": v} for v in (None, 0, -4)]
)
def test_figures_that_cant_be_are_refused(tiny: Callable[..., Path], changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        open_folder(_with(tiny(), **changes))


@settings(max_examples=40, deadline=None)
@given(document=st.dictionaries(st.sampled_from(["quantization_config", "hidden_size", "rope_parameters", "torch_dtype"]), JSON))
def test_arbitrary_fields_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp() / "configured"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | document), encoding="utf-8")
    try:
        open_folder(folder)
    except InputError as error:
        assert len(str(error).splitlines()) == 1


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        open_folder(tmp_path)
    with pytest.raises(InputError, match="no such model folder"):
        open_folder(tmp_path / "absent")
