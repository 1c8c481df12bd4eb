"""Small random checkpoints that ``scripts/faults`` kills and damages: one of each way to store a model."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, Gemma2Config, GptOssConfig, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config
from transformers.utils import logging

from abliterate.model.formats import fp8
from abliterate.model.index import INDEX

SMALL = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 48, "max_position_embeddings": 64}
SPECIALS = ("<|end|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_base(folder: Path, config: Any, shards: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A random sharded checkpoint with a side file."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).to(dtype).save_pretrained(folder, max_shard_size=shards)
    (folder / "LICENSE").write_text("none\n")
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """A token a letter, and a chat template that begins and ends every turn."""
    tokens = [*SPECIALS, "<unk>", "\n", " ", ".", "?", *string.ascii_lowercase]
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.add_special_tokens(list(SPECIALS))
    made = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|end|>", pad_token="<|end|>", unk_token="<unk>")
    made.chat_template = TEMPLATE
    made.save_pretrained(folder)


def llama(folder: Path) -> Path:
    """Untied, with biases on the writers."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3} | SMALL
    return save_base(folder, LlamaConfig(**sizes, attention_bias=True, mlp_bias=True, tie_word_embeddings=False), "20KB")


def qwen2(folder: Path) -> Path:
    """Tied, in float32."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2} | SMALL
    return save_base(folder, Qwen2Config(**sizes, tie_word_embeddings=True), "40KB", torch.float32)


def gemma2(folder: Path) -> Path:
    """With norms between the writers and the stream."""
    return save_base(folder, Gemma2Config(hidden_size=32, intermediate_size=64, num_hidden_layers=2, **SMALL), "20KB")


def qwen3_fp8(folder: Path) -> Path:
    """With matrices in block-scaled FP8."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2} | SMALL
    save_base(folder, Qwen3Config(**sizes, tie_word_embeddings=False), "20KB")

    def quantised(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if not name.endswith("_proj.weight"):
            return {name: tensor}
        weight, scales = fp8.requantise(tensor.float(), torch.randn(1, tensor.shape[0]), (16, 16))
        return {name: weight, f"{name}_scale_inv": scales}

    return _rewritten(folder, quantised, {"quant_method": "fp8", "weight_block_size": [16, 16]})


def gpt_oss(folder: Path) -> Path:
    """With experts in MXFP4."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_local_experts": 2, "num_experts_per_tok": 1} | SMALL
    save_base(folder, GptOssConfig(**sizes), "60KB")

    def packed(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if tensor.ndim != 3:
            return {name: tensor}
        experts, inputs, outputs = tensor.shape
        blocks = torch.randint(256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        return {f"{name}_blocks": blocks, f"{name}_scales": torch.randint(118, 124, blocks.shape[:3], dtype=torch.uint8)}

    return _rewritten(folder, packed, {"quant_method": "mxfp4"})


def _rewritten(folder: Path, change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]], settings: dict[str, Any]) -> Path:
    """Every tensor through ``change``, and what the config then says of the weights."""
    shard_of = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors = {new: t.contiguous() for name, tensor in load_file(path).items() for new, t in change(name, tensor).items()}
        save_file(tensors, path, {"format": "pt"})
        shard_of |= dict.fromkeys(tensors, path.name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder


BASES: dict[str, Callable[[Path], Path]] = {"llama": llama, "qwen2": qwen2, "gemma2": gemma2, "qwen3-fp8": qwen3_fp8, "gpt-oss": gpt_oss}
PLAIN = ("llama", "qwen2", "gemma2")  # stored as torch computes them, so that transformers alone can say what is right
