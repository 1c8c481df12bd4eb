"""What differs between two checkpoints: an edit along a direction is told from every other change, and the direction found again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from packed import save_fp8, save_fp8_tensor, save_mxfp4, store, tensors_of
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from abliterate.checkpoint.difference import Difference, differences, work_of_difference
from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.checkpoint.spectrum import KEPT, difference, rounding_noise, spectrum, squared_norm
from abliterate.checkpoint.verdict import layer_directions, summary
from abliterate.errors import InputError
from abliterate.model.edit import Edit, edit_from_direction, edit_from_rows
from abliterate.model.folder import open_folder

Tiny = Callable[..., Path]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def draw(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edited(base: Path, plan: Edit) -> Path:
    out = base.with_name(f"{base.name}-edited")
    edit_checkpoint(open_folder(base), plan, out, "base", lambda proof: "card\n")
    return out


def changed(base: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]], **options: Any) -> Path:
    """A copy of a checkpoint with other tensors."""
    out = base.with_name(f"{base.name}-changed")
    shutil.copytree(base, out)
    store(out, change(tensors_of(base)), **options)
    return out


def compared(base: Path, derived: Path) -> tuple[Difference, dict[str, Any]]:
    found = differences(open_folder(base), open_folder(derived))
    told = summary(found)
    json.dumps(found.table(told).document(), allow_nan=False)
    return found, told.document()


def cosines(found: Difference, rows: Tensor) -> list[float]:
    """|cos| of each block's recovered direction with its row of ``rows``."""
    return [
        abs(float(direction @ rows[layer].double() / rows[layer].norm())) for layer, direction in layer_directions(found.changes).items()
    ]


def adapted(base: Path, modules: list[str], rank: int, scale: float = 1.0) -> Path:
    """The base with a random LoRA adapter merged."""
    out = base.with_name(f"{base.name}-adapted")
    shutil.copytree(base, out)
    torch.manual_seed(5)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=modules, init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(0.0, 0.3 * scale)
    model.merge_and_unload().save_pretrained(out)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_single_direction_is_told_and_found_again(tiny: Tiny, dtype: torch.dtype, strength: float) -> None:
    base, direction = tiny(d_model=64, dtype=dtype), draw(64)
    found, told = compared(base, edited(base, edit_from_direction(direction, 4, strength)))
    assert told["verdict"] == "directional", told["reasons"]
    assert told["changed"] == {"attention": 4, "mlp": 4, "embedding": 1} and told["rank"]["max"] == 1
    assert cosines(found, direction.expand(4, -1)) == pytest.approx([1.0] * 4, abs=1e-3)
    assert told["strength"]["median"] == pytest.approx(strength, abs=0.01)
    assert told["left"]["max"] <= 1 - strength + 0.05
    assert told["over_layers"]["cos_min"] > 0.99


def test_a_direction_per_layer_is_told_and_each_is_found_again(tiny: Tiny) -> None:
    base, rows = tiny(dtype=torch.bfloat16), draw(4, 32)
    found, told = compared(base, edited(base, edit_from_direction(rows, 4)))
    assert told["verdict"] == "directional" and "embedding" not in told["changed"]
    assert min(cosines(found, rows)) > 0.99 and told["over_layers"]["cos_min"] < 0.9


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_direction_of_its_own_for_every_writer_is_told(tiny: Tiny, family: str) -> None:
    base = tiny(family, d_model=64)
    strength = torch.tensor([[1.0, 0.3], [0.02, 0.6], [0.0, 0.8], [0.4, 0.05]])
    found, told = compared(base, edited(base, Edit(torch.nn.functional.normalize(draw(4, 2, 1, 64), dim=-1), strength, "skip")))
    assert told["verdict"] == "directional", told["reasons"]
    assert any("Each block has its own direction" in reason for reason in told["reasons"])
    assert min(change.own or 0 for change in found.changes if change.directions is not None) > 0.95
    assert told["strength"]["min"] == pytest.approx(0.02, abs=0.005) and told["strength"]["max"] == pytest.approx(1, abs=0.005)


def test_two_directions_at_once_are_told(tiny: Tiny) -> None:
    base, rows = tiny(), draw(4, 2, 32)
    _, told = compared(base, edited(base, edit_from_rows(rows, torch.ones(4, 2))))
    assert told["verdict"] == "directional" and told["rank"]["max"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_norms_don_t_hide_the_direction(tiny: Tiny, dtype: torch.dtype) -> None:
    base, direction = tiny(dtype=dtype), draw(32)
    found, told = compared(base, edited(base, edit_from_direction(direction, 4, keep_norms=True)))
    assert told["verdict"] == "directional", told["reasons"]
    assert min(cosines(found, direction.expand(4, -1))) > 0.99
    assert {change.rescaled for change in found.changes} - {None} == {"columns"}


def test_rows_that_got_their_old_length_back_don_t_hide_the_edit(tiny: Tiny) -> None:
    direction = torch.nn.functional.normalize(draw(32), dim=0)

    def edit(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        made = dict(tensors)
        for name, weight in tensors.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                new = weight - direction[:, None] * (direction @ weight)
                made[name] = new * (weight.norm(dim=1) / new.norm(dim=1))[:, None]
        return made

    base = tiny()
    found, told = compared(base, changed(base, edit))
    assert told["verdict"] == "directional", told["reasons"]
    assert {change.rescaled for change in found.changes} - {None} == {"rows"} and min(cosines(found, direction.expand(4, -1))) > 0.99


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_behind_a_norm_the_direction_is_that_of_the_stream(tiny: Tiny, family: str) -> None:
    base, direction = tiny(family), draw(32)
    found, told = compared(base, edited(base, edit_from_direction(direction, 4, tied=False, policy="skip")))
    assert told["verdict"] == "directional", told["reasons"]
    assert min(cosines(found, direction.expand(4, -1))) > 0.99 and all(change.through_norm for change in found.changes)


def test_biases_of_writers_follow_the_direction(tiny: Tiny) -> None:
    for keep in (False, True):
        base = tiny("llama", attention_bias=True, mlp_bias=True)
        found, told = compared(base, edited(base, edit_from_direction(draw(32), 4, keep_norms=keep)))
        assert told["verdict"] == "directional", told["reasons"]
        assert sum(change.pair is not None for change in found.changes) == 8


def test_a_bias_that_changed_otherwise_is_told(tiny: Tiny) -> None:
    base = tiny("llama", attention_bias=True, mlp_bias=True)
    out = edited(base, edit_from_direction(draw(32), 4))
    name = "model.layers.1.self_attn.o_proj.bias"
    store(out, {**tensors_of(out), name: tensors_of(base)[name] + draw(32, seed=9)})
    _, told = compared(base, out)
    assert told["verdict"] == "other" and any(name in reason for reason in told["reasons"])


def test_an_adapter_on_all_linear_layers_is_something_else(tiny: Tiny) -> None:
    base = tiny(d_model=64)
    _, told = compared(base, adapted(base, LINEAR, 4))
    assert told["verdict"] == "other" and told["changed"]["other"] == 20
    assert any("don't write into the residual stream" in reason for reason in told["reasons"])
    assert any("rank above 4, as with a merged adapter" in reason for reason in told["reasons"])


@pytest.mark.parametrize("rank", [1, 4])
def test_an_adapter_on_the_writers_alone_is_something_else(tiny: Tiny, rank: int) -> None:
    base = tiny(d_model=64, dtype=torch.bfloat16)
    found, told = compared(base, adapted(base, ["o_proj", "down_proj"], rank))
    assert told["verdict"] == "other" and all(change.writer for change in found.changes)
    assert any("directions disagree" in reason for reason in told["reasons"])
    assert any("what the matrix itself wrote" in reason for reason in told["reasons"])


def test_training_below_an_edit_is_something_else(tiny: Tiny) -> None:
    base = tiny(d_model=64)
    derived = edited(base, edit_from_direction(draw(64), 4))
    _, told = compared(base, adapted(derived, ["o_proj", "down_proj"], 2))
    assert told["rank"]["max"] == 3
    assert told["verdict"] == "other" and any("what the matrix itself wrote" in reason for reason in told["reasons"])


def test_training_of_biases_alone_is_something_else(tiny: Tiny) -> None:
    base = tiny("gpt2", d_model=64)
    biases = ("attn.c_proj.bias", "mlp.c_proj.bias")
    derived = changed(base, lambda tensors: {n: t + draw(*t.shape) if n.endswith(biases) else t for n, t in tensors.items()})
    found, told = compared(base, derived)
    assert len(found.changes) == 8 and told["verdict"] == "other" and any("biases" in reason for reason in told["reasons"])


def test_a_component_that_grew_is_something_else(tiny: Tiny) -> None:
    direction = torch.nn.functional.normalize(draw(32), dim=0)
    base = tiny()
    grown = changed(base, lambda tensors: {n: t + direction[:, None] * (direction @ t) if "o_proj" in n else t for n, t in tensors.items()})
    _, told = compared(base, grown)
    assert told["verdict"] == "other" and told["strength"]["max"] == pytest.approx(-1, abs=1e-3)


def test_training_of_every_weight_has_no_low_rank(tiny: Tiny) -> None:
    base = tiny(d_model=64, dtype=torch.bfloat16)
    trained = changed(base, lambda tensors: {n: t + 0.05 * draw(*t.shape, seed=i).to(t) for i, (n, t) in enumerate(tensors.items())})
    found, told = compared(base, trained)
    assert told["verdict"] == "other" and not told["same"] and told["rank"]["min"] > 8
    assert not any("adapter" in reason for reason in told["reasons"]) and len(found.changes) == len(tensors_of(base))


def test_identical_checkpoints_differ_in_nothing_however_they_are_sharded(tiny: Tiny) -> None:
    base, shards = tiny(), tiny(shards="20KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    for other in (base, shards):
        found, told = compared(base, other)
        assert told["verdict"] == "identical" and not found.changes and sum(told["same"].values()) == len(tensors_of(base))


def test_an_edit_is_told_between_one_file_and_shards(tiny: Tiny) -> None:
    base, shards, direction = tiny(), tiny(shards="20KB"), draw(32)
    found, told = compared(base, edited(shards, edit_from_direction(direction, 4)))
    assert told["verdict"] == "directional" and min(cosines(found, direction.expand(4, -1))) > 0.99


def test_the_same_values_in_another_type_are_no_change(tiny: Tiny) -> None:
    base = tiny()
    found, told = compared(base, changed(base, lambda tensors: {n: t.bfloat16() for n, t in tensors.items()}))
    assert told["verdict"] == "identical" and len(found.recast) == len(tensors_of(base))


def test_tensors_that_one_side_lacks_or_has_in_another_shape_are_listed(tiny: Tiny) -> None:
    base = tiny()
    lost, grown = "model.layers.2.self_attn.q_proj.weight", "lm_head.weight"

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        made = {n: t for n, t in tensors.items() if n != lost} | {"extra.weight": draw(3)}
        return made | {grown: torch.cat([tensors[grown], draw(2, 32)])}

    found, told = compared(base, changed(base, change))
    assert (found.only_base, found.only_derived) == ([lost], ["extra.weight"])
    assert [entry.name for entry in found.reshaped] == [grown] and told["verdict"] == "other"
    assert any(lost in reason for reason in told["reasons"])


@pytest.mark.parametrize("save", [save_fp8, save_fp8_tensor, save_mxfp4])
def test_quantised_checkpoints_are_compared_by_their_values(tmp_path: Path, save: Callable[[Path], Path]) -> None:
    base = save(tmp_path / "base")
    folder = open_folder(base)
    direction = draw(folder.d_model)
    assert compared(base, base)[1]["verdict"] == "identical"
    found, told = compared(base, edited(base, edit_from_direction(direction, folder.layers, policy="skip")))
    assert told["verdict"] == "directional", told["reasons"]
    assert min(cosines(found, direction.expand(folder.layers + 2, -1))) > 0.99
    assert any("experts" in change.name for change in found.changes) or save is save_fp8_tensor


def test_a_tensor_with_nan_is_said_to_be_damaged(tiny: Tiny) -> None:
    base = tiny()
    broken = changed(base, lambda tensors: {n: t / 0 if n.endswith("0.self_attn.o_proj.weight") else t for n, t in tensors.items()})
    with pytest.raises(InputError, match="NaN or infinite"):
        compared(base, broken)


def test_progress_adds_up_to_the_bytes_of_the_base(tiny: Tiny) -> None:
    folder, heard = open_folder(tiny()), []
    differences(folder, folder, heard.append)
    assert sum(heard) == work_of_difference(folder) > 0


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_the_rank_of_a_large_edit_is_exact_below_the_rounding(rank: int) -> None:
    base = draw(300, 500).bfloat16()
    derived = (base.float() + 0.03 * draw(300, rank, seed=1) @ draw(rank, 500, seed=2)).bfloat16()
    delta = difference(base, derived)
    found = spectrum(delta, rounding_noise(derived, 8, squared_norm(delta)))
    assert not found.whole and found.rank == rank
    exact = torch.linalg.svd(delta.double())
    assert torch.allclose(found.values[:rank], exact.S[:rank], rtol=1e-3)
    assert float((found.left[:, 0].double() @ exact.U[:, 0]).abs()) > 0.999 or rank > 1


def test_rounding_alone_has_no_rank_and_noise_above_it_more_than_is_looked_for() -> None:
    exact = draw(300, 500)
    for change, rank in ((0.0, 0), (0.1, None)):
        derived = (exact + change * draw(300, 500, seed=1)).bfloat16()
        delta = difference(exact, derived)
        assert spectrum(delta, rounding_noise(derived, 8, squared_norm(delta))).rank == rank, KEPT
