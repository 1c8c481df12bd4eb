"""The same model in a wider residual stream: every vector of the stream is carried over by one isometry."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


def isometry(width: int, wider: int, seed: int = 0) -> Tensor:
    """A matrix [wider, width] with orthonormal columns."""
    return torch.linalg.qr(torch.randn(wider, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


def widen(source: Path, out: Path, wider: int, seed: int = 0) -> Tensor:
    """Write a Llama checkpoint that computes what ``source`` computes, with d_model = ``wider``; gives the isometry Q.

    With the norms' weights folded into the matrices behind them, a norm is x / rms(x), and rms(Q x) is rms(x) times the root of
    width / wider: one factor, which each norm's weight takes back. Readers become W Qᵀ, writers Q W.
    """
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    config = model.config
    carry = isometry(config.hidden_size, wider, seed).float()
    scale = config.hidden_size / wider
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block, _, inner = name.rpartition("layers.")[2].partition(".")
        if name.endswith("norm.weight"):
            made[name] = torch.full((wider,), scale**0.5)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            made[name] = carry @ tensor
        elif name == "model.embed_tokens.weight":
            made[name] = tensor @ carry.T
        elif name == "lm_head.weight":
            made[name] = (tensor * state["model.norm.weight"]) @ carry.T
        else:
            norm = "input_layernorm" if "self_attn" in inner else "post_attention_layernorm"
            made[name] = (tensor * state[f"model.layers.{block}.{norm}.weight"]) @ carry.T
    config.head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    config.hidden_size, config.rms_norm_eps, config.tie_word_embeddings = wider, config.rms_norm_eps * scale, False
    wide = AutoModelForCausalLM.from_config(config)
    wide.load_state_dict({name: tensor.contiguous() for name, tensor in made.items()})
    wide.save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)
    return carry
