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


@pytest.mark.parametrize("quantised", [{"quant_method": "fp8"}, {"bits": 4}, "fp8", ["gptq"], 4])
def test_quantised_weights_are_refused(tiny: Callable[..., Path], quantised: Any) -> None:
    with pytest.raises(InputError, match="quantised"):
        open_folder(_with(tiny(), quantization_config=quantised))


@pytest.mark.parametrize("model_type", ["gemma2", "nonsense", None, 5])
def test_an_unknown_architecture_is_refused(tiny: Callable[..., Path], model_type: Any) -> None:
    with pytest.raises(InputError, match="no layout for the architecture"):
        open_folder(_with(tiny(), model_type=model_type))


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
