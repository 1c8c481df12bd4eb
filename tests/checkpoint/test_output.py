"""Where the tensors of the new checkpoint lie, and what its index and config say of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from abliterate.checkpoint.output import UNTIED_SHARD, Output, new_config, new_index, plan_output
from abliterate.checkpoint.tasks import EditTask
from abliterate.model.formats.mxfp4 import Mxfp4
from abliterate.model.index import INDEX, SINGLE, ShardIndex, open_index
from abliterate.model.removal import removal

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SHARDS = pytest.mark.parametrize("shards", [None, "20KB"])


def _files(index: ShardIndex, output: Output, out: Path) -> Path:
    """The planned files with zeros for data, and the index."""
    out.mkdir()
    for shard in output.shards:
        (out / shard.name).write_bytes(shard.header + bytes(shard.nbytes - len(shard.header)))
    content = new_index(index, output)
    if content is not None:
        (out / INDEX).write_bytes(content)
    return out


def _packed(folder: Path, single: bool = False) -> ShardIndex:
    """Experts in MXFP4, 64 wide: two writers' halves of one block, another block's, and a norm between them."""
    folder.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(2):
        for part, rows, groups in (("gate_up_proj", 96, 2), ("down_proj", 64, 1)):
            tensors[f"model.layers.{layer}.mlp.experts.{part}_blocks"] = torch.zeros(4, rows, groups, 16, dtype=torch.uint8)
            tensors[f"model.layers.{layer}.mlp.experts.{part}_scales"] = torch.zeros(4, rows, groups, dtype=torch.uint8)
    tensors["model.norm.weight"] = torch.ones(64)
    if single:
        save_file(tensors, folder / SINGLE, {"format": "pt", "who": "é"})
        return open_index(folder)
    names = {name: f"model-{'1' if '.0.' in name else '2'}.safetensors" for name in tensors}
    for file in set(names.values()):
        save_file({n: t for n, t in tensors.items() if names[n] == file}, folder / file, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {"note": "kept", "total_size": 1}, "weight_map": names}))
    return open_index(folder)


def _unpacking(layer: int) -> dict[str, EditTask]:
    name = f"model.layers.{layer}.mlp.experts.down_proj"
    return {name: EditTask(name, "mlp", 2, removal(torch.eye(1, 64)), 1.0, stored=Mxfp4())}


@SHARDS
def test_where_nothing_changes_size_the_headers_are_the_sources(tiny: Callable[..., Path], shards: str | None) -> None:
    index = open_index(tiny(shards=shards, dtype=torch.bfloat16))
    output = plan_output(index, {"model.norm.weight": EditTask("model.norm.weight", "mlp", 0, removal(torch.eye(1, 32)), 1.0)})
    assert output.tensors == index.tensors and output.nbytes == index.nbytes
    assert output.unpacked == {} and output.untied is None
    for shard in output.shards:
        whole = (index.folder / shard.name).read_bytes()
        assert shard.header == whole[: shard.tensors[0].start] and shard.nbytes == len(whole)


@SHARDS
def test_the_index_is_the_sources_bytes_where_no_tensor_moved(tiny: Callable[..., Path], shards: str | None) -> None:
    index = open_index(tiny(shards=shards))
    content = new_index(index, plan_output(index, {}))
    assert content == (None if shards is None else (index.folder / INDEX).read_bytes())


def test_a_file_without_tensors_is_planned_as_it_is(tmp_path: Path) -> None:
    save_file({}, tmp_path / SINGLE, {"format": "pt"})
    (shard,) = plan_output(open_index(tmp_path), {}).shards
    assert shard.header == (tmp_path / SINGLE).read_bytes() and shard.nbytes == len(shard.header)


@SHARDS
def test_an_untied_head_gets_the_embeddings_type_and_shape_and_a_place_that_transformers_reads(
    tiny: Callable[..., Path], tmp_path: Path, shards: str | None
) -> None:
    index = open_index(tiny(tied=True, shards=shards, dtype=torch.bfloat16))
    output = plan_output(index, {}, (EMBEDDING, HEAD))
    written = open_index(_files(index, output, tmp_path / "out"))
    head, embedding = written.tensors[HEAD], index.tensors[EMBEDDING]
    assert (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
    assert written.tensors == output.tensors and written.nbytes == output.nbytes
    assert written.tensors.keys() == index.tensors.keys() | {HEAD}
    assert head.shard == (SINGLE if shards is None else UNTIED_SHARD)
    assert (tmp_path / "out" / INDEX).exists() == (shards is not None)
    others = [shard for shard in output.shards if shard.name != head.shard]
    assert all(shard.same_header for shard in others) and {s.name for s in others} == set(index.shards) - {head.shard}


def test_the_index_of_an_untied_model_names_every_tensor_and_its_size(tiny: Callable[..., Path]) -> None:
    index = open_index(tiny(tied=True, shards="20KB"))
    output = plan_output(index, {}, (EMBEDDING, HEAD))
    old, new = json.loads((index.folder / INDEX).read_text()), json.loads(new_index(index, output) or b"")
    assert new["weight_map"] == old["weight_map"] | {HEAD: UNTIED_SHARD}
    assert new["metadata"]["total_size"] == old["metadata"]["total_size"] + index.tensors[EMBEDDING].nbytes


@pytest.mark.parametrize("single", [True, False])
def test_the_experts_of_an_edited_module_leave_mxfp4_together(tmp_path: Path, single: bool) -> None:
    index = _packed(tmp_path / "model", single)
    output = plan_output(index, _unpacking(1))
    written = open_index(_files(index, output, tmp_path / "out"))
    assert written.tensors == output.tensors and list(output.unpacked) == ["model.layers.1.mlp.experts"]
    down, both = (written.tensors[f"model.layers.1.mlp.experts.{part}"] for part in ("down_proj", "gate_up_proj"))
    assert (down.dtype, down.shape) == ("BF16", (4, 32, 64))
    assert (both.dtype, both.shape) == ("BF16", (4, 64, 96))
    packed = {name for name in written.tensors if name.endswith(("_blocks", "_scales"))}
    assert packed == {name for name in index.tensors if ".layers.0." in name}
    assert all(written.tensors[name].shape == index.tensors[name].shape for name in [*packed, "model.norm.weight"])


def test_a_new_header_keeps_the_files_metadata_and_is_aligned(tmp_path: Path) -> None:
    index = _packed(tmp_path / "model", single=True)
    (shard,) = plan_output(index, _unpacking(0)).shards
    header = json.loads(shard.header[8:])
    assert header["__metadata__"] == {"format": "pt", "who": "é"}
    assert len(shard.header) % 8 == 0 and not shard.same_header
    out = _files(index, plan_output(index, _unpacking(0)), tmp_path / "out")
    assert load_file(out / SINGLE)["model.layers.0.mlp.experts.down_proj"].dtype == torch.bfloat16


def test_a_new_index_keeps_what_the_old_one_says_besides(tmp_path: Path) -> None:
    index = _packed(tmp_path / "model")
    output = plan_output(index, _unpacking(0))
    content = json.loads(new_index(index, output) or b"")
    assert content["metadata"] == {"note": "kept", "total_size": sum(info.nbytes for info in output.tensors.values())}
    assert content["weight_map"] == {name: info.shard for name, info in output.tensors.items()}


def test_only_the_shard_that_changes_gets_a_new_header(tmp_path: Path) -> None:
    index = _packed(tmp_path / "model")
    output = plan_output(index, _unpacking(0))
    assert {shard.name: shard.same_header for shard in output.shards} == {"model-1.safetensors": False, "model-2.safetensors": True}


def test_a_config_stays_as_it_is_where_the_form_does(tiny: Callable[..., Path]) -> None:
    config = {"model_type": "llama", "tie_word_embeddings": True, "quantization_config": {"quant_method": "fp8"}}
    assert new_config(config, plan_output(open_index(tiny()), {})) is None


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({"tie_word_embeddings": True, "x": 1}, {"tie_word_embeddings": False, "x": 1}),
        ({"x": 1}, {"x": 1, "tie_word_embeddings": False}),
        (
            {"text_config": {"tie_word_embeddings": True, "y": 2}},
            {"text_config": {"tie_word_embeddings": False, "y": 2}, "tie_word_embeddings": False},
        ),
    ],
)
def test_the_config_of_an_untied_model_says_so(config: dict[str, object], changed: dict[str, object]) -> None:
    before = json.dumps(config)
    assert new_config(config, Output((), {}, (EMBEDDING, HEAD))) == changed
    assert json.dumps(config) == before


def test_the_config_names_the_modules_that_left_mxfp4(tmp_path: Path) -> None:
    index = _packed(tmp_path / "model")
    config = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "x": 1}
    changed = new_config(config, plan_output(index, _unpacking(0)))
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.experts"]}
    assert changed == {"quantization_config": settings, "x": 1}
    assert config["quantization_config"] == {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}


def test_a_model_that_left_mxfp4_wholly_is_no_longer_called_quantised(tmp_path: Path) -> None:
    index = _packed(tmp_path / "model")
    config = {"quantization_config": {"quant_method": "mxfp4"}, "x": 1}
    assert new_config(config, plan_output(index, _unpacking(0) | _unpacking(1))) == {"x": 1}
