"""Small copies: the sizes go, what makes the architecture stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig

from abliterate.errors import InputError
from abliterate.model.tiny import probe, tiny_config, tiny_model

LONG = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.5] * 48}
YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0}
KDA = {"full_attn_layers": [4, 8], "kda_layers": [1, 2, 3, 5, 6, 7], "head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4}
PARTIAL = {"partial_rotary_factor": 0.75}
GEMMA = {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
# What the configs of released models say that their families' defaults don't.
RELEASED: dict[str, dict[str, Any]] = {
    "Llama 3.1": {"model_type": "llama", "hidden_size": 4096, "num_key_value_heads": 8, "eos_token_id": [128001, 128008]},
    "Phi 3 with long context": {"model_type": "phi3", "hidden_size": 3072, "rope_scaling": LONG},
    "Phi 4 mini": {"model_type": "phi3", "hidden_size": 3072, "num_attention_heads": 24, "rope_scaling": LONG, **PARTIAL},
    "DeepSeek V3": {"model_type": "deepseek_v3", "rope_scaling": YARN, "quantization_config": {"quant_method": "fp8"}},
    "Nemotron-H": {"model_type": "nemotron_h", "num_hidden_layers": 12, "hybrid_override_pattern": "M-M-M*-M-M-M"},
    "Kimi Linear": {"model_type": "kimi_linear", "num_hidden_layers": 8, "linear_attn_config": KDA},
    "Gemma 4 with experts": {"model_type": "gemma4_text", **GEMMA},
    "Llama 4 Scout": {"model_type": "llama4_text", "moe_layers": list(range(48)), "no_rope_layers": [1, 1, 1, 0] * 12},
    "Hunyuan with a number a block": {"model_type": "hunyuan_v1_moe", "num_hidden_layers": 32, "head_dim": 128, "moe_topk": [8] * 32},
    "Granite 4 without experts": {"model_type": "granitemoehybrid", "num_local_experts": 0, "layer_types": ["attention"] * 32},
}  # fmt: skip


def config_of(model_type: str, **options: Any) -> PretrainedConfig:
    return AutoConfig.for_model(model_type, **copy.deepcopy(options)).get_text_config()  # transformers writes into them


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_models_config_has_a_small_copy_that_runs(name: str) -> None:
    model = tiny_model(tiny_config(config_of(**RELEASED[name]), 4))
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    assert model.config.num_hidden_layers == 4 and model.config.hidden_size == 64
    assert not hasattr(model.config, "quantization_config")


def test_sizes_become_small_and_everything_else_stays() -> None:
    config = config_of("granite", residual_multiplier=0.22, rms_norm_eps=1e-3, tie_word_embeddings=True, hidden_act="gelu")
    small = tiny_config(config, 3)
    assert (small.num_hidden_layers, small.hidden_size, small.vocab_size) == (3, 64, 96)
    kept = ("residual_multiplier", "rms_norm_eps", "tie_word_embeddings", "hidden_act", "model_type")
    assert [getattr(small, key) for key in kept] == [getattr(config, key) for key in kept]


def test_blocks_keep_their_kinds() -> None:
    config = config_of("qwen3_next")
    assert tiny_config(config, 6).layer_types == config.layer_types[:6]
    assert tiny_config(config_of("bamba", attn_layer_indices=[1, 9]), 4).attn_layer_indices == [1]


@pytest.mark.parametrize(("model_type", "grouped"), [("llama", True), ("qwen2", True), ("gpt_neox", False)])
def test_heads_stay_shared_or_their_own(model_type: str, grouped: bool) -> None:
    options = {"num_attention_heads": 32, "num_key_value_heads": 8} if grouped else {}
    small = tiny_config(config_of(model_type, **options), 2)
    assert small.num_attention_heads == 4 and getattr(small, "num_key_value_heads", 4) == (2 if grouped else 4)
    whole = tiny_config(config_of("llama", num_attention_heads=32, num_key_value_heads=32), 2)
    assert whole.num_key_value_heads == whole.num_attention_heads


def test_what_belongs_to_rotated_dimensions_shrinks_with_them() -> None:
    long = tiny_config(config_of(**RELEASED["Phi 3 with long context"]), 2).rope_parameters
    assert [len(long[key]) for key in ("short_factor", "long_factor")] == [8, 8]
    sections = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}
    shared = tiny_config(config_of("qwen2_5_vl", text_config=sections), 2).get_text_config().rope_parameters
    assert shared["mrope_section"] == [2, 3, 3]


def test_a_small_copy_of_a_small_copy_is_the_same() -> None:
    once = tiny_config(config_of("deepseek_v3"), 4)
    assert tiny_config(once, 4).to_dict() == once.to_dict()


def test_a_text_model_without_a_head_comes_inside_its_vision_language_model() -> None:
    model = tiny_model(tiny_config(config_of("qwen3_vl"), 2))
    assert model.config.model_type == "qwen3_vl" and model(input_ids=probe()).logits.shape[-1] == 96


def test_a_copy_leaves_the_runs_own_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    tiny_model(tiny_config(config_of("llama"), 2), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_norms_and_biases_are_not_the_identity_and_a_seed_gives_one_model() -> None:
    config = tiny_config(config_of("gemma2", attention_bias=True), 2)
    first, again, other = (dict(tiny_model(config, seed=seed).named_parameters()) for seed in (0, 0, 1))
    for name, parameter in first.items():
        assert float(parameter.detach().std()) > 0.05
        assert torch.equal(parameter, again[name]) and not torch.equal(parameter, other[name])


@pytest.mark.parametrize("options", [{"hidden_act": "no such"}, {"rope_parameters": {"rope_type": "no such", "rope_theta": 1.0}}])
def test_what_transformers_cannot_build_is_one_line(options: dict[str, Any]) -> None:
    config = config_of("llama")
    for key, value in options.items():
        setattr(config, key, value)
    with pytest.raises(InputError, match=r"'llama'.*small copy") as caught:
        tiny_model(tiny_config(config, 2))
    assert "\n" not in str(caught.value)
