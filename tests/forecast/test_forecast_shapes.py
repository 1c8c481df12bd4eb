"""Names, shapes and types of a checkpoint without its weights are those that its shards would have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from families import FAMILIES, VISION, Case, layers, small
from packed import save_fp8, save_fp8_tensor, save_mxfp4, set_config
from skeletons import QWEN_32B_BYTES, R1_BYTES, save_qwen_32b, save_r1

from abliterate.checkpoint.edit import check_editable
from abliterate.compute.memory import sizes_of
from abliterate.errors import InputError
from abliterate.forecast.shapes import imagined, lacks_weights
from abliterate.model.folder import open_folder
from abliterate.model.index import INDEX, TensorInfo, open_index

TRIED = ["gpt2", "gpt_oss", "mixtral", "llama4_text", "deepseek_v3", "phi3", "bloom", "granitemoe", "gemma2"]
CASES = [next(case for case in FAMILIES if case.model_type == name) for name in TRIED]
SEEING = [case for case, _ in VISION if case.model_type in ("gemma3", "qwen2_vl", "llama4")]


def bare(info: TensorInfo) -> tuple[str, tuple[int, ...], str]:
    return info.shard, info.shape, info.dtype


def without_weights(folder: Path) -> dict[str, TensorInfo]:
    """What the shards hold, which are then gone."""
    tensors = open_index(folder).tensors
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    return tensors


@pytest.mark.parametrize("case", [*CASES, Case("lfm2", layers("conv", "full_attention")), *SEEING], ids=str)
def test_names_shapes_and_types_are_those_of_the_shards(case: Case, tmp_path: Path) -> None:
    small(case, text=case not in SEEING).save_pretrained(tmp_path, max_shard_size="30KB")
    real = without_weights(tmp_path)
    index, nbytes = imagined(open_folder(tmp_path))
    assert {name: bare(info) for name, info in index.tensors.items()} == {name: bare(info) for name, info in real.items()}
    assert nbytes == sum(info.nbytes for info in real.values())


@pytest.mark.parametrize("save", [save_fp8, save_fp8_tensor, save_mxfp4])
def test_what_quantised_formats_hold_is_known_too(save: Callable[..., Path], tmp_path: Path) -> None:
    folder = save(tmp_path, sharded=True)
    real = without_weights(folder)
    index, _ = imagined(open_folder(folder))
    assert {name: info.shape for name, info in index.tensors.items()} == {name: info.shape for name, info in real.items()}
    packed = {name: info.dtype for name, info in real.items() if info.dtype in ("F8_E4M3", "U8")}
    assert packed and {name: index.tensors[name].dtype for name in packed} == packed


def test_the_index_says_how_wide_a_number_is_where_the_config_is_silent(tmp_path: Path) -> None:
    small(CASES[0]).save_pretrained(tmp_path, max_shard_size="30KB")
    set_config(tmp_path, dtype=None)
    real = without_weights(tmp_path)
    assert {info.dtype for info in real.values()} == {"F32"}
    assert {info.dtype for info in imagined(open_folder(tmp_path))[0].tensors.values()} == {"F32"}


def test_the_bytes_of_a_large_model_are_those_of_its_index(tmp_path: Path) -> None:
    index, nbytes = imagined(open_folder(save_qwen_32b(tmp_path)))
    assert nbytes == QWEN_32B_BYTES == sum(info.nbytes for info in index.tensors.values())
    assert sizes_of(index, open_folder(tmp_path)).total == 32_763_876_352


def test_blocks_of_multi_token_prediction_and_scales_have_shapes_too(tmp_path: Path) -> None:
    folder = open_folder(save_r1(tmp_path, experts=8))
    index, nbytes = imagined(folder)
    assert nbytes == R1_BYTES
    assert index.tensors["model.layers.61.eh_proj.weight"].shape == (7168, 14336)
    assert index.tensors["model.layers.61.mlp.experts.7.down_proj.weight"].shape == (7168, 2048)
    assert index.tensors["model.layers.61.shared_head.head.weight"].shape == (129280, 7168)
    assert index.tensors["model.layers.60.mlp.experts.0.up_proj.weight_scale_inv"].shape == (16, 56)
    sizes = sizes_of(index, folder)
    expert = 3 * 2048 * 7168
    assert sizes.total == 671_026_419_200 - 58 * 248 * (expert + 7168 + 1)  # as its makers say, without multi-token prediction
    assert sizes.merged == 8 * expert


def test_a_folder_that_has_any_weight_does_not_lack_them(tmp_path: Path) -> None:
    save_qwen_32b(tmp_path)
    assert lacks_weights(tmp_path)
    (tmp_path / "model-00001-of-000008.safetensors").write_bytes(b"")
    assert not lacks_weights(tmp_path)
    with pytest.raises(InputError):
        check_editable(open_folder(tmp_path))


@pytest.mark.parametrize("name", ["model.layers.0.mlp.mystery.weight", "\n", "x" * 2000])
def test_a_name_that_the_config_does_not_explain_is_refused(name: str, tmp_path: Path) -> None:
    content = json.loads((save_qwen_32b(tmp_path) / INDEX).read_text())
    content["weight_map"][name] = "model-00001-of-000008.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"the weights are needed|damaged"):
        imagined(open_folder(tmp_path))
