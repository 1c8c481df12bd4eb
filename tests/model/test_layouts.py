"""The table of layouts: every tensor of a model as transformers saves it is placed, once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from abliterate.checkpoint.index import open_index
from abliterate.errors import InputError
from abliterate.model.layouts import LAYOUTS, layout_for


@pytest.mark.parametrize("model_type", sorted(LAYOUTS))
def test_every_tensor_of_the_architecture_is_placed(tmp_path: Path, model_type: str) -> None:
    config = AutoConfig.for_model(
        model_type,
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    index, layout = open_index(tmp_path), layout_for(model_type)
    assert layout.unknown(index.tensors) == []
    assert all(writer.weight.format(layer=1) in index.tensors for writer in layout.writers)


def test_every_template_names_a_module(tiny: Callable[..., Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny())
    layout = layout_for("llama")
    for name in (layout.embedding_module, layout.block.format(layer=3), *(w.module(3) for w in layout.writers)):
        assert model.get_submodule(name) is not None


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.down_proj.qweight",
        "model.layers.0.mlp.down_proj.weight_scale_inv",
        "model.layers.0.mlp.experts.0.down_proj.weight",
        "model.layers.x.mlp.down_proj.weight",
        "model.layers.0.mlp.down_proj.weight\n",
        "layers.0.mlp.down_proj.weight",
        "model.embed_tokens.bias",
        "",
    ],
)
def test_a_stranger_among_the_names_is_found(name: str) -> None:
    layout = layout_for("llama")
    assert layout.unknown([name, "model.layers.0.mlp.down_proj.weight", "model.norm.weight"]) == [name]


@pytest.mark.parametrize("model_type", ["gemma2", "Llama", "", "gpt2", "qwen2_moe"])
def test_an_architecture_outside_the_table_is_refused(model_type: str) -> None:
    with pytest.raises(InputError, match="known: llama"):
        layout_for(model_type)
