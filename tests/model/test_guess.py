"""The guess of a layout from a small copy: what the table says of families that it knows, found by names and shapes alone."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from abliterate.errors import InputError
from abliterate.model.guess import guess_layout
from abliterate.model.layouts import Layout, layout_for


def guessed(model_type: str, **options: Any) -> Layout:
    return guess_layout(AutoConfig.for_model(model_type, **options).get_text_config())


def writers(layout: Layout, only: set[str]) -> set[tuple[Any, ...]]:
    return {(w.weight, w.component, w.axis, w.norms, w.offset) for w in layout.writers if w.weight in only}


@pytest.mark.parametrize(
    "model_type",
    [
        "llama",
        "qwen2_moe",
        "qwen3_next",
        "gemma2",
        "olmo2",
        "glm4",
        "phi",
        "gpt2",
        "falcon",
        "falcon_h1",
        "lfm2",
        "granitemoe",
        "starcoder2",
    ],
)
def test_a_known_family_would_have_been_guessed(model_type: str) -> None:
    made, known = guessed(model_type, num_hidden_layers=4), layout_for(model_type)
    assert known is not None
    assert writers(made, {w.weight for w in made.writers}) == writers(known, {w.weight for w in made.writers})
    assert (made.block, made.embedding, made.positions) == (known.block, known.embedding, known.positions)


@pytest.mark.parametrize(
    ("model_type", "positions"), [("gpt_neo", "transformer.wpe.weight"), ("opt", "model.decoder.embed_positions.weight"), ("gptj", None)]
)
def test_learned_positions_are_seen(model_type: str, positions: str | None) -> None:
    assert guessed(model_type).positions == positions


def test_a_writer_is_watched_in_its_own_layer_where_that_is_a_module() -> None:
    assert {w.module for w in guessed("mpt").writers} == {"attn.out_proj", "ffn.down_proj"}
    assert {w.module for w in guessed("gemma2").writers} == {"post_attention_layernorm", "post_feedforward_layernorm"}


@pytest.mark.parametrize(("model_type", "offset"), [("gemma2", 1.0), ("olmo2", 0.0), ("afmoe", 0.0)])
def test_whether_a_norm_multiplies_by_one_more_is_tried_out(model_type: str, offset: float) -> None:
    assert {w.offset for w in guessed(model_type).writers} == {offset}


@pytest.mark.parametrize("model_type", ["rwkv", "ctrl", "openai-gpt", "bert"])
def test_what_looks_like_nothing_known_is_no_layout(model_type: str) -> None:
    with pytest.raises(InputError, match="known name") as caught:
        guessed(model_type)
    assert "\n" not in str(caught.value)
