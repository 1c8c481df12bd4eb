"""From plan and layout to tensors: everything is placed or the edit is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from abliterate.checkpoint.tasks import EditTask, edit_tasks, missing_expert, placed_writers, unplaced, writer_kinds
from abliterate.errors import InputError
from abliterate.model.edit import Edit, edit_from_direction
from abliterate.model.folder import open_folder
from abliterate.model.formats.fp8 import BlockFp8
from abliterate.model.formats.mxfp4 import Mxfp4
from abliterate.model.formats.plain import PLAIN
from abliterate.model.index import SINGLE, open_index

Tiny = Callable[..., Path]
DOWN, EMBEDDING = "model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"
EXPERT = "model.layers.{}.mlp.experts.{}.down_proj.weight"
FP8 = torch.float8_e4m3fn


def _tasks(folder: Path, edit: Edit) -> dict[str, EditTask]:
    return edit_tasks(open_index(folder), open_folder(folder), edit)


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    return folder


def _configure(folder: Path, **changes: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return folder


def _plan(policy: str = "skip", layers: int = 4, d_model: int = 32, strength: float = 1.0) -> Edit:
    return edit_from_direction(torch.ones(d_model), layers, strength, policy)


def _mxfp4(tiny: Tiny) -> Path:
    """A gpt-oss whose config says that its experts are MXFP4."""
    return _configure(tiny("gpt_oss", layers=2, head_dim=8, num_local_experts=4), quantization_config={"quant_method": "mxfp4"})


def _packed(tensors: dict[str, torch.Tensor]) -> None:
    """The experts of gpt-oss as its checkpoints hold them."""
    for name in [name for name in tensors if name.endswith("experts.down_proj")]:
        experts, inputs, d_model = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.zeros(experts, d_model, inputs // 32, 16, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.zeros(experts, d_model, inputs // 32, dtype=torch.uint8)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_writers_of_every_block_are_edited_and_nothing_else(tiny: Tiny, family: str) -> None:
    tasks = _tasks(tiny(family), _plan())
    writers = {"self_attn.o_proj.weight": "attention", "mlp.down_proj.weight": "mlp"}
    expected = {f"model.layers.{layer}.{writer}": kind for layer in range(4) for writer, kind in writers.items()}
    assert {name: task.kind for name, task in tasks.items()} == expected
    assert {(task.stored, task.axis, task.strength, task.keep_norms) for task in tasks.values()} == {(PLAIN, 0, 1.0, False)}


def test_the_embedding_joins_where_the_plan_says_so(tiny: Tiny) -> None:
    tasks = _tasks(tiny(), _plan("edit"))
    assert (tasks[EMBEDDING].axis, tasks[EMBEDDING].kind) == (1, "embedding")
    assert len(tasks) == 9


def test_learned_positions_join_the_embedding(tiny: Tiny) -> None:
    folder = tiny("gpt2", tied=True)
    tasks = _tasks(folder, _plan("edit"))
    shared = {name: (task.kind, task.axis) for name, task in tasks.items() if ".h." not in name}
    assert shared == {"transformer.wte.weight": ("embedding", 1), "transformer.wpe.weight": ("positions", 1)}
    assert not {"transformer.wte.weight", "transformer.wpe.weight"} & _tasks(folder, _plan("skip")).keys()


def test_a_vision_projectors_last_layer_joins_the_embedding_and_its_tower_stays(tiny: Tiny) -> None:
    def nest(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[f"language_model.{name}"] = tensors.pop(name)
        for layer in (1, 2):
            tensors[f"multi_modal_projector.linear_{layer}.weight"] = torch.ones(32, 24)
        tensors["vision_tower.layers.0.mlp.down_proj.weight"] = torch.ones(32, 24)

    tasks = _tasks(_rewrite(tiny(), nest), _plan("edit"))
    others = {name: (task.kind, task.axis) for name, task in tasks.items() if ".layers." not in name}
    assert others.pop("language_model.model.embed_tokens.weight") == ("embedding", 1)
    assert others["multi_modal_projector.linear_2.weight"] == ("projector", 0)
    assert len([name for name in tasks if name.startswith("language_model.model.layers.")]) == 8
    assert not any(name.startswith("vision_tower") for name in tasks)


def test_biases_of_writers_are_edited_with_them(tiny: Tiny) -> None:
    tasks = _tasks(tiny(attention_bias=True, mlp_bias=True), _plan())
    biases = {name for name in tasks if name.endswith(".bias")}
    assert biases == {f"model.layers.{layer}.{writer}.bias" for layer in range(4) for writer in ("self_attn.o_proj", "mlp.down_proj")}
    assert {tasks[name].axis for name in biases} == {0}


@pytest.mark.parametrize(
    ("family", "options", "axes"),
    [
        ("gpt2", {}, {"attn.c_proj.weight": 1, "attn.c_proj.bias": 0, "mlp.c_proj.weight": 1, "mlp.c_proj.bias": 0}),
        (
            "gpt_oss",
            {"head_dim": 8, "num_local_experts": 4},
            {"self_attn.o_proj.weight": 0, "self_attn.o_proj.bias": 0, "mlp.experts.down_proj": 2, "mlp.experts.down_proj_bias": 1},
        ),
        (
            "mixtral",
            {"num_local_experts": 2},
            {"self_attn.o_proj.weight": 0, **{f"block_sparse_moe.experts.{e}.w2.weight": 0 for e in range(2)}},
        ),
    ],
)
def test_the_axis_of_d_model_is_the_layouts_not_the_shapes(tiny: Tiny, family: str, options: dict[str, int], axes: dict[str, int]) -> None:
    tasks = _tasks(tiny(family, layers=2, **options), _plan(layers=2))
    inside = {name: re.search(r"\.(?:layers|h)\.1\.(.+)", name) for name in tasks}
    assert {match[1]: tasks[name].axis for name, match in inside.items() if match} == axes


def test_a_strength_of_zero_makes_no_task(tiny: Tiny) -> None:
    edit = _plan()
    strength = edit.strength.clone()
    strength[1, 1] = 0
    folder = tiny()
    assert set(_tasks(folder, edit)) - set(_tasks(folder, replace(edit, strength=strength))) == {DOWN}
    assert _tasks(folder, _plan("edit", strength=0.0)) == {}


def test_the_embedding_has_no_more_strength_than_the_blocks(tiny: Tiny) -> None:
    tasks = _tasks(tiny(), _plan("auto", strength=0.5))
    assert tasks[EMBEDDING].strength == tasks[DOWN].strength == 0.5


def test_each_block_gets_its_own_row(tiny: Tiny) -> None:
    rows = torch.eye(4, 32)
    tasks = _tasks(tiny(), edit_from_direction(rows, 4))
    assert torch.equal(tasks[DOWN].removal.q, rows[1:2].double())


def test_each_component_gets_its_own_rows(tiny: Tiny) -> None:
    rows = torch.linalg.qr(torch.randn(4, 2, 32, 3)).Q.mT.contiguous()
    tasks = _tasks(tiny(), Edit(rows, torch.ones(4, 2), "skip"))
    assert torch.equal(tasks["model.layers.2.self_attn.o_proj.weight"].removal.q, rows[2, 0].double())
    assert torch.equal(tasks["model.layers.2.mlp.down_proj.weight"].removal.q, rows[2, 1].double())


def test_keeping_norms_is_every_tasks(tiny: Tiny) -> None:
    tasks = _tasks(tiny(), replace(_plan("edit"), keep_norms=True))
    assert len(tasks) == 9 and all(task.keep_norms for task in tasks.values())


@pytest.mark.parametrize(("family", "offset"), [("gemma2", 1.0), ("olmo2", 0.0)])
def test_the_norm_behind_a_writer_is_read_from_the_checkpoint(tiny: Tiny, family: str, offset: float) -> None:
    folder = tiny(family, head_dim=8)
    tensors, tasks = load_file(folder / SINGLE), _tasks(folder, _plan())
    for writer, norm in (("self_attn.o_proj", "post_attention_layernorm"), ("mlp.down_proj", "post_feedforward_layernorm")):
        gamma = tensors[f"model.layers.2.{norm}.weight"].double() + offset
        found = tasks[f"model.layers.2.{writer}.weight"].removal
        assert found.scale is not None and torch.equal(found.scale, gamma)


def test_the_same_name_of_a_norm_in_front_of_the_mlp_is_not_taken_for_one_behind_attention(tiny: Tiny) -> None:
    folder = tiny("llama")
    assert "model.layers.0.post_attention_layernorm.weight" in open_index(folder).tensors
    assert not any(task.removal.oblique for task in _tasks(folder, _plan()).values())


@pytest.mark.parametrize("policy", ["edit", "untie"])
def test_an_embedding_with_a_norm_behind_it_cant_be_edited(tiny: Tiny, policy: str) -> None:
    folder = tiny("bloom", tied=True)
    assert len(_tasks(folder, _plan())) == 16
    with pytest.raises(InputError, match="a norm follows the token embedding"):
        _tasks(folder, replace(_plan("edit"), embedding=policy))


def test_a_missing_embedding_is_named_where_it_is_edited(tiny: Tiny) -> None:
    folder = _rewrite(tiny(), lambda tensors: tensors.pop(EMBEDDING))
    assert len(_tasks(folder, _plan("skip"))) == 8
    with pytest.raises(InputError, match=f"lacks {EMBEDDING}"):
        _tasks(folder, _plan("edit"))


def test_a_tied_embedding_that_is_stored_twice_is_not_edited_once(tiny: Tiny) -> None:
    folder = _rewrite(tiny(tied=True), lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDING].clone()}))
    assert EMBEDDING not in _tasks(folder, _plan("skip"))
    with pytest.raises(InputError, match=r"ties the embeddings, but lm_head\.weight is stored too"):
        _tasks(folder, _plan("edit"))


@pytest.mark.parametrize("made", [torch.ones(259, 31), torch.ones(32), torch.ones(259, 32, dtype=torch.int8)])
def test_an_embedding_of_another_shape_or_type_is_refused(tiny: Tiny, made: torch.Tensor) -> None:
    folder = _rewrite(tiny(), lambda tensors: tensors.update({EMBEDDING: made}))
    with pytest.raises(InputError, match=EMBEDDING):
        _tasks(folder, _plan("edit"))


def test_a_block_beyond_the_configs_goes_with_the_last_block(tiny: Tiny) -> None:
    folder, hidden = tiny(), "model.layers.4.mlp.down_proj.weight"
    _rewrite(folder, lambda tensors: tensors.update({hidden: tensors[DOWN].clone()}))
    task = _tasks(folder, edit_from_direction(torch.eye(4, 32), 4))[hidden]
    assert task.kind == "mtp" and torch.equal(task.removal.q, torch.eye(4, 32)[3:].double())


def test_a_block_beyond_the_configs_is_unplaced_where_the_family_predicts_one_token(tiny: Tiny) -> None:
    folder = open_folder(tiny())
    names = list(open_index(folder.path).tensors)
    assert unplaced([*names, "model.layers.4.mlp.down_proj.weight"], folder, names) == ["model.layers.4.mlp.down_proj.weight"]


def test_blocks_of_multi_token_prediction_are_edited_with_what_joins_them_to_the_stream(tiny: Tiny) -> None:
    def behind(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.4.eh_proj.weight"] = torch.ones(32, 64)
        tensors["model.layers.4.self_attn.o_proj.weight"] = torch.ones(32, 16)
        tensors["model.layers.4.embed_tokens.weight"] = torch.ones(259, 32)
        tensors["model.layers.4.enorm.weight"] = torch.ones(32)

    folder = _rewrite(tiny("qwen3_moe", head_dim=8, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8), behind)
    added = {name: task.kind for name, task in _tasks(folder, _plan("edit")).items() if ".4." in name}
    assert added == {
        "model.layers.4.eh_proj.weight": "mtp",
        "model.layers.4.self_attn.o_proj.weight": "mtp",
        "model.layers.4.embed_tokens.weight": "embedding",
    }


def test_a_block_without_writers_is_named(tiny: Tiny) -> None:
    folder = _rewrite(tiny(), lambda tensors: [tensors.pop(name) for name in (DOWN, "model.layers.1.self_attn.o_proj.weight")])
    with pytest.raises(InputError, match="block 1 has no tensor"):
        _tasks(folder, _plan())


@pytest.mark.parametrize("made", [torch.ones(31, 64), torch.ones(64), torch.empty(32, 0)])
def test_a_writer_of_another_shape_is_refused(tiny: Tiny, made: torch.Tensor) -> None:
    folder = _rewrite(tiny(), lambda tensors: tensors.update({DOWN: made}))
    with pytest.raises(InputError, match=DOWN):
        _tasks(folder, _plan())


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.int8, torch.uint8])
def test_a_writer_in_a_type_without_a_meaning_is_refused(tiny: Tiny, dtype: torch.dtype) -> None:
    folder = _rewrite(tiny(), lambda tensors: tensors.update({DOWN: tensors[DOWN].to(dtype)}))
    with pytest.raises(InputError, match=f"{DOWN} is stored as .*which can't be edited"):
        _tasks(folder, _plan())


def test_fp8_with_its_scales_is_edited_in_its_own_blocks_and_without_them_refused(tiny: Tiny) -> None:
    folder = tiny()
    _configure(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 32]})
    _rewrite(folder, lambda tensors: tensors.update({DOWN: tensors[DOWN].to(FP8), f"{DOWN}_scale_inv": torch.ones(2, 2)}))
    task = _tasks(folder, _plan())[DOWN]
    assert (task.stored, task.axis) == (BlockFp8((16, 32)), 0)
    _rewrite(folder, lambda tensors: tensors.pop(f"{DOWN}_scale_inv"))
    with pytest.raises(InputError, match=f"{DOWN} is stored as FP8 without {DOWN}_scale_inv"):
        _tasks(folder, _plan())


def test_packed_experts_are_edited_as_the_tensor_that_they_become(tiny: Tiny) -> None:
    folder = _rewrite(_mxfp4(tiny), _packed)
    tasks = _tasks(folder, _plan(layers=2))
    task = tasks["model.layers.1.mlp.experts.down_proj"]
    assert (task.stored, task.axis, task.kind) == (Mxfp4(), 2, "mlp")
    assert (tasks["model.layers.1.mlp.experts.down_proj_bias"].stored, len(tasks)) == (PLAIN, 8)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("model.layers.1.mlp.experts.down_proj_scales"),
        lambda tensors: tensors.update({"model.layers.1.mlp.experts.down_proj_blocks": torch.ones(4, 31, 2, 16)}),
        lambda tensors: tensors.update({"model.layers.1.mlp.experts.down_proj_blocks": torch.ones(4, 32, 32)}),
    ],
    ids=["without scales", "of another width", "of three dimensions"],
)
def test_packed_experts_that_are_not_whole_are_refused(tiny: Tiny, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    folder = _rewrite(_rewrite(_mxfp4(tiny), _packed), change)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts\.down_proj_blocks has shape"):
        _tasks(folder, _plan(layers=2))


@pytest.mark.parametrize(("layers", "d_model"), [(3, 32), (5, 32), (4, 31), (4, 64)])
def test_a_plan_of_another_size_is_refused(tiny: Tiny, layers: int, d_model: int) -> None:
    with pytest.raises(InputError, match="has 4 of width 32"):
        _tasks(tiny(), _plan(layers=layers, d_model=d_model))


def test_a_direction_per_block_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="3 rows, but the model has 4 blocks"):
        edit_from_direction(torch.ones(3, 32), 4)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.experts.down_proj.weight",
        "model.layers.0.mlp.experts.0.down_proj.weight",
        "model.layers.0.mlp.down_proj.qweight",
        "model.layers.x.mlp.down_proj.weight",
        "model.layers.0.mlp.down_proj.weight\n",
        "layers.0.mlp.down_proj.weight",
        "model.layers.4.mlp.extra_proj.weight",
        "lm_head.bias",
        "model.embed_tokens.bias",
        "model.embed_positions.weight",
        "score.weight",
        "",
    ],
)
def test_a_tensor_that_the_copy_lacks_is_a_stranger(tiny: Tiny, name: str) -> None:
    path = tiny(layers=2)
    copy, folder = open_index(path).tensors, replace(open_folder(path), layers=4)
    real = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(4)]
    assert unplaced([*copy, *real, name], folder, copy) == [name]


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.3.self_attn.rotary_emb.inv_freq",
        "model.layers.3.mlp.down_proj.weight_scale_inv",
        "language_model.model.layers.3.mlp.down_proj.weight",
        "vision_tower.layers.0.mlp.down_proj.weight",
        "lm_head.weight",
    ],
)
def test_what_the_copy_has_by_another_name_or_what_writes_nothing_is_no_stranger(tiny: Tiny, name: str) -> None:
    path = tiny(layers=2, tied=True)
    assert unplaced([name], replace(open_folder(path), layers=4), open_index(path).tensors) == []


def test_the_kinds_of_blocks_are_told_apart_by_their_writers(tiny: Tiny) -> None:
    folder = replace(open_folder(tiny("qwen3_moe", layers=2, head_dim=8)), layers=3)
    attention = [f"model.layers.{layer}.self_attn.{part}.weight" for layer in range(4) for part in ("o_proj", "q_proj")]
    names = [*attention, DOWN, *(EXPERT.format(2, expert) for expert in range(12))]
    assert writer_kinds(names, folder) == {
        0: {"self_attn.o_proj.weight"},
        1: {"self_attn.o_proj.weight", "mlp.down_proj.weight"},
        2: {"self_attn.o_proj.weight", "mlp.experts.*.down_proj.weight"},
    }


def test_the_writers_of_packed_experts_are_those_of_plain_ones(tiny: Tiny) -> None:
    path = _mxfp4(tiny)
    plain = writer_kinds(open_index(path).tensors, open_folder(path))
    _rewrite(path, _packed)
    assert writer_kinds(open_index(path).tensors, open_folder(path)) == plain
    assert plain[0] >= {"self_attn.o_proj.weight", "mlp.experts.down_proj"}


def test_an_expert_that_lacks_what_its_neighbours_have_is_found() -> None:
    whole = [EXPERT.format(layer, expert) for layer in range(2) for expert in range(11)]
    assert missing_expert([*whole, DOWN]) is None
    for lost in (EXPERT.format(1, 0), EXPERT.format(1, 5)):
        neighbours = [name.replace("down", "up") for name in whole]
        assert missing_expert([*(name for name in whole if name != lost), *neighbours]) == lost


def test_writers_are_placed_in_the_order_of_their_names(tiny: Tiny) -> None:
    folder = tiny()
    names = [placed.name for placed in placed_writers(open_index(folder), open_folder(folder))]
    assert names == sorted(names) and len(names) == 8
