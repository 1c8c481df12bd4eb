"""Every family of architectures that the tests try, as small random models."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, PreTrainedModel

from abliterate.model.layouts import known_types
from abliterate.model.tiny import tiny_config, tiny_model


@dataclass(frozen=True)
class Case:
    """A model type, what its config says besides the defaults, and parts that its blocks must have."""

    model_type: str
    options: dict[str, Any] = field(default_factory=dict)
    blocks: int = 2
    parts: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        return self.model_type + (f"-{self.note}" if self.note else "")


def layers(*kinds: str) -> dict[str, Any]:
    return {"num_hidden_layers": len(kinds), "layer_types": list(kinds)}


FULL = "full_attention"
GEMMA_EXPERTS = {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
DEEPSEEK_LITE = {"num_experts_per_tok": 6, "first_k_dense_replace": 1, "head_dim": 64}
FAMILIES = [
    Case("llama"),
    Case("llama", {"attention_bias": True, "mlp_bias": True}, note="biases", parts=("o_proj.bias", "down_proj.bias")),
    Case("llama4_text", blocks=4, parts=("feed_forward.experts.down_proj", "shared_expert.down_proj")),
    Case("llama4_text", {"interleave_moe_layer_step": 2}, note="dense", parts=("feed_forward.experts.down_proj", "feed_forward.down_proj")),
    Case("mistral"),
    Case("mixtral", parts=("experts.3.w2",)),
    Case("qwen2"),
    Case("qwen2_moe", parts=("experts.3.down_proj", "shared_expert.down_proj")),
    Case("qwen3"),
    Case("qwen3_moe", parts=("experts.3.down_proj",)),
    Case("qwen3_next", blocks=4, parts=("linear_attn.out_proj", "self_attn.o_proj", "experts.3.down_proj", "shared_expert.down_proj")),
    Case("qwen3_5_text", blocks=4, parts=("linear_attn.out_proj", "self_attn.o_proj")),
    Case("qwen3_5_moe_text", blocks=4, parts=("linear_attn.out_proj", "self_attn.o_proj", "experts", "shared_expert.down_proj")),
    Case("gemma"),
    Case("gemma2"),
    Case("gemma3_text"),
    Case("gemma4_text", blocks=4, parts=("per_layer_projection",)),
    Case("gemma4_text", GEMMA_EXPERTS, 4, ("experts.down_proj", "mlp.down_proj"), "moe"),
    Case("phi", parts=("self_attn.dense.bias", "fc2.bias")),
    Case("phi3"),
    Case("phimoe", parts=("experts.3.w2",)),
    Case("gpt2", parts=("attn.c_proj.bias", "mlp.c_proj.bias")),
    Case("gpt_neox", {"use_parallel_residual": True}, note="parallel"),
    Case("gpt_neox", {"use_parallel_residual": False}, note="sequential"),
    Case("gpt_oss", parts=("down_proj_bias", "o_proj.bias")),
    Case("olmo"),
    Case("olmo2"),
    Case("olmo3", blocks=4),
    Case("olmoe", parts=("experts.3.down_proj",)),
    Case("glm"),
    Case("glm4"),
    Case("glm4_moe", parts=("mlp.down_proj", "experts.3.down_proj", "shared_experts.down_proj")),
    Case("hunyuan_v1_dense", {"head_dim": 128}),
    Case("hunyuan_v1_moe", {"head_dim": 128}, parts=("experts.3.down_proj", "shared_mlp.down_proj")),
    Case("ernie4_5"),
    Case("ernie4_5_moe", parts=("mlp.down_proj", "experts.3.down_proj", "shared_experts.down_proj")),
    Case("minimax_m2", parts=("experts.3.w2",)),
    Case("granite"),
    Case("granitemoe", parts=("output_linear",)),
    Case("granitemoehybrid", layers("mamba", "attention"), parts=("mamba.out_proj", "self_attn.o_proj", "shared_mlp.output_linear")),
    Case("cohere"),
    Case("cohere2", blocks=4),
    Case("starcoder2", parts=("mlp.c_proj.bias",)),
    Case("stablelm"),
    Case("stablelm", {"use_parallel_residual": True}, note="parallel"),
    Case("smollm3", blocks=4),
    Case("exaone4", blocks=4),
    Case("lfm2", layers("conv", FULL), parts=("conv.out_proj", "self_attn.out_proj")),
    Case("lfm2_moe", layers("conv", FULL, "conv", FULL), 4, ("conv.out_proj", "self_attn.out_proj", "experts.3.w2", "feed_forward.w2")),
    Case("deepseek_v2", DEEPSEEK_LITE, parts=("mlp.down_proj", "experts.3.down_proj", "shared_experts.down_proj")),
    Case("deepseek_v3", blocks=4, parts=("mlp.down_proj", "experts.3.down_proj", "shared_experts.down_proj")),
    Case("deepseek_v32", blocks=4, parts=("mlp.down_proj", "experts.3.down_proj", "shared_experts.down_proj")),
    Case("deepseek_v4", blocks=4, parts=("attn.wo_b", "ffn.experts.3.w2", "ffn.shared_experts.w2")),
    Case("glm_moe_dsa", blocks=4, parts=("mlp.down_proj", "experts.3.down_proj", "shared_experts.down_proj")),
    Case("bloom", parts=("dense.bias", "dense_4h_to_h.bias")),
    Case("falcon"),
    Case("falcon", {"new_decoder_architecture": True, "num_kv_heads": 8}, note="new-decoder"),
    Case("falcon", {"parallel_attn": False, "bias": True, "alibi": True}, note="sequential", parts=("dense.bias",)),
    Case("falcon_h1", parts=("mamba.out_proj", "self_attn.o_proj", "feed_forward.down_proj")),
    Case("nemotron_h", blocks=4, parts=("mixer.out_proj", "mixer.o_proj", "mixer.down_proj", "mixer.experts.3.down_proj")),
    Case("bamba", {"attn_layer_indices": [1]}, parts=("mamba.out_proj", "self_attn.o_proj", "feed_forward.down_proj")),
    Case("jamba", blocks=5, parts=("mamba.out_proj", "self_attn.o_proj", "feed_forward.down_proj", "experts.1.down_proj")),
    Case("kimi_linear", blocks=4, parts=("self_attn.o_proj", "block_sparse_moe.down_proj", "experts.3.w2", "shared_experts.down_proj")),
]  # fmt: skip
# What layouts.toml knows beyond the families above.
OTHERS = [
    Case("nemotron", {"num_key_value_heads": 8}),
    Case("ministral", {"head_dim": 128}),
    Case("dots1", {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2}),
]
WITH_VISION_ONLY = {"qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "glm4v_text"}
NAMED = {case.model_type for case in [*FAMILIES, *OTHERS]}
OTHERS += [Case(name) for name in known_types() if name not in NAMED | WITH_VISION_ONLY]
TIED = [Case("llama"), Case("qwen2"), Case("gemma2"), Case("gpt2"), Case("cohere"), Case("lfm2", layers("conv", FULL))]


def rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections), **more}}}


# Vision-language models, the layers of their projectors that write into the stream, and all that is vision.
VISION = [
    (Case("gemma3"), {"multi_modal_projector.mm_input_projection_weight"}),
    (Case("gemma4", {"vision_config": {"model_type": "gemma4_vision"}}, 4), {"model.embed_vision.embedding_projection.weight"}),
    (Case("llava"), {"multi_modal_projector.linear_2.weight", "multi_modal_projector.linear_2.bias"}),
    (Case("mistral3"), {"multi_modal_projector.linear_2.weight"}),
    (Case("llama4", blocks=4), {"multi_modal_projector.linear_1.weight"}),
    (Case("qwen2_vl", rope(16, 24, 24)), {"visual.merger.mlp.2.weight", "visual.merger.mlp.2.bias"}),
    (Case("qwen2_5_vl", rope(16, 24, 24)), {"visual.merger.mlp.2.weight", "visual.merger.mlp.2.bias"}),
    (Case("qwen3_vl", rope(24, 20, 20)), {"model.visual.merger.linear_fc2.weight", "model.visual.merger.linear_fc2.bias"}),
    (Case("qwen3_5", blocks=4), {"model.visual.merger.linear_fc2.weight", "model.visual.merger.linear_fc2.bias"}),
    (Case("glm4v", rope(8, 12, 12, partial_rotary_factor=0.5)), {"model.visual.merger.down_proj.weight"}),
    (Case("paligemma"), {"multi_modal_projector.linear.weight", "multi_modal_projector.linear.bias"}),
    (Case("idefics3"), {"model.connector.modality_projection.proj.weight"}),
]


def small(case: Case, tied: bool = False, text: bool = True) -> PreTrainedModel:
    config = AutoConfig.for_model(case.model_type, **copy.deepcopy(case.options))  # transformers writes into them
    config = config.get_text_config() if text else config
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = tied
    return tiny_model(tiny_config(config, case.blocks), seed=11)
