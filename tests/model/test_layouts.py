"""The table of layouts: what a tensor's name means on disk and where its writing can be watched in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from abliterate.errors import InputError
from abliterate.model.index import open_index
from abliterate.model.layouts import Layout, Writer, aliased, known_types, layout_for, layout_from, load_layout, refusal_of
from abliterate.model.tensor_names import in_memory, is_buffer, projector_axis, template, text_name

SIZES = {"layers": 2, "head_dim": 8}


def _layout(model_type: str) -> Layout:
    found = layout_for(model_type)
    assert found is not None
    return found


@pytest.mark.parametrize("model_type", known_types())
def test_every_type_in_the_table_is_one_that_transformers_knows(model_type: str) -> None:
    assert aliased(model_type) in CONFIG_MAPPING
    assert refusal_of(model_type) is None


@pytest.mark.parametrize("model_type", known_types())
def test_every_layout_has_a_writer_of_each_component_and_none_twice(model_type: str) -> None:
    layout = _layout(model_type)
    assert {writer.component for writer in layout.writers} == {"attention", "mlp"}
    assert len({writer.weight for writer in layout.writers}) == len(layout.writers)
    assert all(layout.writer_of(writer.weight) == (writer, False) for writer in layout.writers)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma2"])
def test_every_writer_of_the_table_is_a_tensor_on_disk_and_a_module_in_memory(tiny: Callable[..., Path], model_type: str) -> None:
    folder, layout = tiny(model_type, **SIZES), _layout(model_type)
    names, model = open_index(folder).tensors, AutoModelForCausalLM.from_pretrained(folder)
    parts = dict(model.named_modules())
    assert layout.embedding in names and layout.embedding_module in parts
    for layer in range(2):
        block = layout.block.format(layer)
        for writer in layout.writers:
            assert f"{block}.{writer.weight}" in names and all(f"{block}.{norm}.weight" in names for norm in writer.norms)
        watched = {f"{layout.block_module.format(layer)}.{writer.module}": writer.component for writer in layout.writers}
        assert layout.written_by(layer, parts) == watched


@pytest.mark.parametrize("model_type", ["t5", "Llama", "", "bert", "nonsense"])
def test_an_architecture_outside_the_table_has_no_layout(model_type: str) -> None:
    assert layout_for(model_type) is None and model_type not in known_types()


def test_a_renamed_architecture_has_the_layout_of_the_one_it_renames() -> None:
    assert aliased("kimi_k2") == "deepseek_v3" and layout_for("kimi_k2") is layout_for("deepseek_v3")
    assert aliased("llama") == "llama"


def test_an_architecture_that_cant_be_edited_exactly_is_refused_with_the_reason() -> None:
    assert "residual is taken after a norm" in str(refusal_of("minimax"))
    assert refusal_of("llama") is None and "minimax" not in known_types()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model.layers.0.mlp.down_proj.weight", (0, "mlp.down_proj.weight", False)),
        ("model.layers.61.mlp.experts.7.down_proj.weight", (61, "mlp.experts.7.down_proj.weight", False)),
        ("mtp.layers.2.mlp.down_proj.weight", (2, "mlp.down_proj.weight", True)),
        ("model.layers.0", None),
        ("model.layers.x.mlp.down_proj.weight", None),
        ("model.layers.0.mlp.down_proj.weight\n", None),
        ("layers.0.mlp.down_proj.weight", None),
        ("xmodel.layers.0.mlp.down_proj.weight", None),
        ("modelxlayers.0.mlp.down_proj.weight", None),
        ("model.embed_tokens.weight", None),
        ("", None),
    ],
)
def test_a_name_is_taken_apart_only_where_it_is_one_of_a_block(name: str, found: tuple[int, str, bool] | None) -> None:
    assert _layout("qwen3_next").in_block(name) == found


@pytest.mark.parametrize(
    ("name", "writes", "bias"),
    [
        ("self_attn.o_proj.weight", "attention", False),
        ("self_attn.o_proj.bias", "attention", True),
        ("mlp.down_proj.weight", "mlp", False),
        ("mlp.experts.11.down_proj.weight", "mlp", False),
        ("mlp.shared_experts.down_proj.weight", "mlp", False),
        ("eh_proj.weight", "mlp", False),
        ("self_attn.q_proj.weight", None, False),
        ("mlp.experts.11.up_proj.weight", None, False),
        ("mlp.experts.down_proj.weight", None, False),
        ("mlp.down_proj.qweight", None, False),
        ("enorm.weight", None, False),
    ],
)
def test_what_a_tensor_inside_a_block_writes(name: str, writes: str | None, bias: bool) -> None:
    found = _layout("deepseek_v3").writer_of(name)
    assert (found and (found[0].component, found[1])) == (writes and (writes, bias))


def test_what_a_bias_adds_goes_through_the_norm_of_its_weight() -> None:
    layout = layout_from("x", {"mlp": [{"weight": "mlp.fc.weight", "norm": ["inner", "outer"], "offset": 1}]})
    writer = layout.writers[-1]
    assert (writer.norms, writer.offset, writer.module) == (("inner", "outer"), 1.0, "outer")
    assert layout.writer_of("mlp.fc.bias") == (writer, True)


def test_a_module_that_is_a_mixer_in_some_blocks_and_an_mlp_in_others_shows_in_what_it_holds() -> None:
    layout = _layout("nemotron_h")
    names = {"model.layers.0.mixer", "model.layers.0.mixer.out_proj", "model.layers.1.mixer", "model.layers.1.mixer.experts"}
    assert layout.written_by(0, names) == {"model.layers.0.mixer": "attention"}
    assert layout.written_by(1, names) == {"model.layers.1.mixer": "mlp"}
    assert layout.written_by(2, names) == {}


def test_a_text_model_inside_a_vision_language_one_is_found_by_its_nested_names() -> None:
    names = {f"model.language_model.layers.1{part}" for part in ("", ".self_attn", ".mlp")} | {"model.language_model.embed_tokens"}
    assert set(_layout("llama").written_by(1, names)) == {"model.language_model.layers.1.self_attn", "model.language_model.layers.1.mlp"}
    assert in_memory("model.embed_tokens", names) == "model.language_model.embed_tokens"
    assert in_memory("model.embed_tokens", {*names, "model.embed_tokens"}) == "model.embed_tokens"
    assert in_memory("model.norm", names) == "model.norm"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.down_proj.weight"),
        ("model.language_model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.down_proj.weight"),
        ("language_model.model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.down_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("thinker.model.norm.weight", "model.norm.weight"),
        ("vision_tower.layers.0.mlp.down_proj.weight", None),
        ("model.visual.merger.mlp.2.weight", None),
        ("multi_modal_projector.linear_2.weight", None),
    ],
)
def test_the_text_models_name_of_a_tensor(name: str, text: str | None) -> None:
    assert text_name(name) == text


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        ("multi_modal_projector.linear_2.weight", 0),
        ("model.multi_modal_projector.mm_input_projection_weight", 1),
        ("multi_modal_projector.linear_2.bias", None),
        ("visual.merger.mlp.0.weight", None),
        ("model.embed_tokens.weight", None),
    ],
)
def test_only_the_last_layer_of_a_projector_writes(name: str, axis: int | None) -> None:
    assert projector_axis(name) == axis


@pytest.mark.parametrize(
    ("name", "buffer"),
    [
        ("model.layers.3.self_attn.rotary_emb.inv_freq", True),
        ("transformer.h.0.attn.masked_bias", True),
        ("transformer.h.0.attn.bias", True),
        ("transformer.h.0.attn.c_proj.bias", False),
        ("model.layers.0.self_attn.o_proj.bias", False),
        ("model.layers.0.self_attn.bias", False),
    ],
)
def test_buffers_are_told_from_biases(name: str, buffer: bool) -> None:
    assert is_buffer(name) == buffer


def test_every_number_but_none_of_a_names_own_digits_becomes_a_star() -> None:
    assert template("mlp.experts.12.w2.weight") == "mlp.experts.*.w2.weight"
    assert template("a.0.b.1") == "a.*.b.*" and template("linear_fc2.weight") == "linear_fc2.weight"


def test_a_users_layout_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'block = "net.{}"\nembedding = "net.wte"\npositions = "net.wpe"\nattention = ["attn.out"]\n'
        'mlp = [{ weight = "ff.experts.w2", axis = 2, bias = "ff.experts.b2" }]\n',
        encoding="utf-8",
    )
    layout = load_layout(tmp_path / "mine.toml")
    assert (layout.name, layout.block, layout.block_module) == ("mine", "net.{}", "net.{}")
    assert (layout.embedding, layout.embedding_module, layout.unembedding) == ("net.wte.weight", "net.wte", "lm_head.weight")
    assert (layout.positions, layout.positions_module) == ("net.wpe.weight", "net.wpe")
    assert layout.writers == (
        Writer("attn.out.weight", "attention", 0, "attn.out.bias", module="attn"),
        Writer("ff.experts.w2", "mlp", 2, "ff.experts.b2", module="ff"),
    )


@pytest.mark.parametrize("content", [b"block = ", b"\xff", b"[" * 10, None])
def test_a_layout_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "l.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"l\.toml: not a readable TOML file"):
        load_layout(tmp_path / "l.toml")


VIOLATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a key that no layout has": ({"blocks": "x.{}"}, "unknown key 'blocks'"),
    "a block without a number": ({"block": "model.layers"}, "block"),
    "a block with two numbers": ({"block": "a.{}.b.{}"}, "block"),
    "a block that is no name": ({"block": 5}, "block: Input should be a valid string"),
    "an embedding that is no name": ({"embedding": ["x"]}, "embedding: Input should be a valid string"),
    "writers that are no list": ({"mlp": "mlp.down_proj"}, "mlp: Input should be a valid list"),
    "a writer that is no name": ({"attention": [5]}, r"attention\.0: Input"),
    "a writer without a weight": ({"attention": [{"axis": 0}]}, r"attention\.0\.weight: Field required"),
    "a writer with a key too many": ({"mlp": [{"weight": "a.weight", "shape": 0}]}, r"unknown key 'mlp\.0\.shape'; known: axis,"),
    "an axis that no tensor has": ({"mlp": [{"weight": "a.weight", "axis": 3}]}, r"mlp\.0\.axis: Input should be 0, 1 or 2"),
    "an axis from the end": ({"mlp": [{"weight": "a.weight", "axis": -1}]}, r"mlp\.0\.axis: Input should be 0, 1 or 2"),
    "an offset of two": ({"mlp": [{"weight": "a.weight", "norm": "n", "offset": 2}]}, r"mlp\.0\.offset: Input should be 0 or 1"),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_layout_that_breaks_the_form_is_refused_by_what_is_wrong(violation: str) -> None:
    entry, says = VIOLATIONS[violation]
    with pytest.raises(InputError, match=f"^here: .*{says}") as refused:
        layout_from("x", entry, "here")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "entry",
    [
        {"positions": 5},
        {"mtp": 5},
        {"mtp": "eh_proj"},
        {"mtp_block": 5},
        {"embedding_norm": 5},
        {"mlp": [{"weight": "a.weight", "norm": 5}]},
        {"mlp": [{"weight": "a.weight", "norm": [5]}]},
        {"mlp": [{"weight": "a.weight", "bias": 5}]},
        {"mlp": [{"weight": "a.weight", "module": 5}]},
    ],
    ids=str,
)
def test_a_layout_of_other_types_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^here: ") as refused:
        layout_from("x", entry, "here")
    assert len(str(refused.value).splitlines()) == 1


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_any_name_is_placed_or_not_but_breaks_nothing(name: str) -> None:
    layout = _layout("qwen3_next")
    found = layout.in_block(name)
    assert found is None or (name.endswith(found[1]) and str(found[0]) in name)
    assert layout.writer_of(name) is None or name.endswith((".weight", ".bias", "down_proj"))
