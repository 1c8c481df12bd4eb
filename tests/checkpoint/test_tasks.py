"""From plan and layout to tensors: everything is placed or the edit is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from abliterate.checkpoint.index import SINGLE, open_index
from abliterate.checkpoint.tasks import EditTask, edit_tasks
from abliterate.errors import InputError
from abliterate.model.folder import open_folder
from abliterate.model.plan import EditPlan, plan_from_direction

DOWN = "model.layers.1.mlp.down_proj.weight"


def _tasks(folder: Path, plan: EditPlan) -> dict[str, EditTask]:
    return edit_tasks(open_index(folder), open_folder(folder), plan)


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, {"format": "pt"})


def _plan(policy: str = "skip", layers: int = 4, d_model: int = 32) -> EditPlan:
    return plan_from_direction(torch.ones(d_model), layers, policy=policy)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_writers_of_every_block_are_edited_and_nothing_else(tiny: Callable[..., Path], family: str) -> None:
    tasks = _tasks(tiny(family), _plan())
    writers = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    assert set(tasks) == {f"model.layers.{layer}.{writer}" for layer in range(4) for writer in writers}
    assert {task.kind for task in tasks.values()} == {"attention", "mlp"}


def test_the_embedding_joins_where_the_plan_says_so(tiny: Callable[..., Path]) -> None:
    tasks = _tasks(tiny(), _plan("edit"))
    assert tasks["model.embed_tokens.weight"].axis == 1
    assert len(tasks) == 9


def test_biases_of_writers_are_edited_with_them(tiny: Callable[..., Path]) -> None:
    tasks = _tasks(tiny(attention_bias=True, mlp_bias=True), _plan())
    biases = {name for name in tasks if name.endswith(".bias")}
    assert biases == {f"model.layers.{layer}.{writer}.bias" for layer in range(4) for writer in ("self_attn.o_proj", "mlp.down_proj")}


def test_a_strength_of_zero_makes_no_task(tiny: Callable[..., Path]) -> None:
    plan = _plan()
    strength = plan.strength.clone()
    strength[1, 1] = 0
    assert DOWN not in _tasks(tiny(), replace(plan, strength=strength))


def test_the_embedding_has_no_more_strength_than_the_blocks(tiny: Callable[..., Path]) -> None:
    plan = plan_from_direction(torch.ones(32), 4, 0.5)
    assert _tasks(tiny(), plan)["model.embed_tokens.weight"].strength == 0.5


def test_each_block_gets_its_own_row(tiny: Callable[..., Path]) -> None:
    rows = torch.eye(4, 32)
    tasks = _tasks(tiny(), plan_from_direction(rows, 4))
    assert torch.equal(tasks[DOWN].rows, rows[1:2])


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.experts.down_proj.weight", "lm_head.bias", "model.embed_positions.weight", "score.weight"]
)
def test_a_tensor_outside_the_layout_is_refused(tiny: Callable[..., Path], name: str) -> None:
    folder = tiny()
    _rewrite(folder, lambda tensors: tensors.update({name: torch.ones(32)}))
    with pytest.raises(InputError, match=name):
        _tasks(folder, _plan())


def test_a_block_beyond_the_configs_is_refused(tiny: Callable[..., Path]) -> None:
    folder = tiny()
    hidden = "model.layers.4.mlp.down_proj.weight"
    _rewrite(folder, lambda tensors: tensors.update({hidden: tensors[DOWN].clone()}))
    with pytest.raises(InputError, match=hidden):
        _tasks(folder, _plan())


def test_a_missing_writer_is_named(tiny: Callable[..., Path]) -> None:
    folder = tiny()
    _rewrite(folder, lambda tensors: tensors.__delitem__(DOWN))
    with pytest.raises(InputError, match=f"lacks {DOWN}"):
        _tasks(folder, _plan())


@pytest.mark.parametrize("made", [torch.ones(31, 64), torch.ones(64), torch.empty(32, 0)])
def test_a_writer_of_another_shape_is_refused(tiny: Callable[..., Path], made: torch.Tensor) -> None:
    folder = tiny()
    _rewrite(folder, lambda tensors: tensors.update({DOWN: made}))
    with pytest.raises(InputError, match=DOWN):
        _tasks(folder, _plan())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_a_writer_in_a_quantised_type_is_refused(tiny: Callable[..., Path], dtype: torch.dtype) -> None:
    folder = tiny()
    _rewrite(folder, lambda tensors: tensors.update({DOWN: tensors[DOWN].to(dtype)}))
    with pytest.raises(InputError, match="can't be edited"):
        _tasks(folder, _plan())


@pytest.mark.parametrize(("layers", "d_model"), [(3, 32), (5, 32), (4, 31), (4, 64)])
def test_a_plan_of_another_size_is_refused(tiny: Callable[..., Path], layers: int, d_model: int) -> None:
    with pytest.raises(InputError, match="has 4 of width 32"):
        _tasks(tiny(), _plan(layers=layers, d_model=d_model))


def test_a_direction_per_block_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match="3 rows, the model 4 blocks"):
        plan_from_direction(torch.ones(3, 32), 4)
