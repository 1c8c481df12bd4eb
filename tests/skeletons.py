"""Checkpoints without weights: the config.json and the shard index of large models, as their makers publish them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from abliterate.model.index import INDEX

QWEN_32B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
    "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 152064, "hidden_act": "silu", "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 151643,
    "eos_token_id": 151643, "use_sliding_window": False, "use_cache": True, "attention_dropout": 0.0, "initializer_range": 0.02,
}  # fmt: skip
R1: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_nextn_predict_layers": 1, "first_k_dense_replace": 3, "moe_layer_freq": 1,
    "num_attention_heads": 128, "num_key_value_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid", "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "vocab_size": 129280, "hidden_act": "silu", "max_position_embeddings": 163840, "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1, "attention_bias": False,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip
QWEN_32B_BYTES, R1_BYTES = 65_527_752_704, 688_586_727_753  # as their indices say


def save_qwen_32b(folder: Path) -> Path:
    """DeepSeek-R1-Distill-Qwen-32B: 771 tensors in 8 files."""
    return _save(folder, QWEN_32B, list(_qwen(QWEN_32B["num_hidden_layers"])), QWEN_32B_BYTES, 8)


def save_r1(folder: Path, experts: int = 256) -> Path:
    """DeepSeek-R1: 91,991 tensors in 163 files, a block of multi-token prediction and the scales of FP8 among them.

    With fewer ``experts`` the bytes of the index are still those of the whole.
    """
    config = {**R1, "n_routed_experts": experts}
    return _save(folder, config, list(_r1(config)), R1_BYTES, 163)


def _save(folder: Path, config: dict[str, Any], names: list[str], nbytes: int, shards: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shard_of = {name: f"model-{1 + i * shards // len(names):05d}-of-{shards:06d}.safetensors" for i, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": nbytes}, "weight_map": shard_of}), encoding="utf-8")
    return folder


def _qwen(layers: int) -> Iterator[str]:
    yield "model.embed_tokens.weight"
    for layer in range(layers):
        block = f"model.layers.{layer}"
        yield from (f"{block}.self_attn.{name}_proj.{part}" for name in "qkv" for part in ("weight", "bias"))
        yield f"{block}.self_attn.o_proj.weight"
        yield from (f"{block}.mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
        yield from (f"{block}.{name}_layernorm.weight" for name in ("input", "post_attention"))
    yield from ("model.norm.weight", "lm_head.weight")


def _r1(config: dict[str, Any]) -> Iterator[str]:
    yield "model.embed_tokens.weight"
    layers = config["num_hidden_layers"]
    for layer in range(layers + config["num_nextn_predict_layers"]):
        block = f"model.layers.{layer}"
        yield from _scaled(f"{block}.self_attn.{name}" for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"))
        yield from (f"{block}.self_attn.{name}_layernorm.weight" for name in ("q_a", "kv_a"))
        yield from (f"{block}.{name}_layernorm.weight" for name in ("input", "post_attention"))
        if layer < config["first_k_dense_replace"]:
            parts = ["mlp"]
        else:
            parts = ["mlp.shared_experts", *(f"mlp.experts.{expert}" for expert in range(config["n_routed_experts"]))]
            yield from (f"{block}.mlp.gate.{name}" for name in ("weight", "e_score_correction_bias"))
        yield from _scaled(f"{block}.{part}.{name}_proj" for part in parts for name in ("gate", "up", "down"))
    yield from (f"model.layers.{layers}.{name}.weight" for name in ("embed_tokens", "enorm", "hnorm", "eh_proj"))
    yield from (f"model.layers.{layers}.shared_head.{name}.weight" for name in ("norm", "head"))
    yield from ("model.norm.weight", "lm_head.weight")


def _scaled(modules: Iterable[str]) -> Iterator[str]:
    for module in modules:
        yield from (f"{module}.weight", f"{module}.weight_scale_inv")
