"""GGUF files as models in memory, their weights unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from abliterate.errors import InputError


def check_reader() -> None:
    """Raise InputError where the package that reads GGUF files isn't installed."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise InputError("reading a GGUF file needs the package gguf: pip install 'abliterate[demo]'") from None


def dequantised(file: Path) -> tuple[Any, Any]:
    """The model and the tokenizer that transformers reads from a GGUF file, in bf16.

    Each tensor is unpacked to float32 and rounded once, one after the other: besides the model in bf16, memory holds the largest
    tensor a few times in float32. bf16 is what such models were published in, and its rounding (0.17 % of a matrix) is small beside
    that to 4 bits (4 to 7 %): it moves the next token of Qwen2.5-Coder-0.5B-Instruct by 3e-5 nats and its likeliest one nowhere
    (docs/models.md). float16 would round less, but hasn't the range that such a model may need where it is computed with.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.bfloat16,
        trust_remote_code=False,
        quantization_config=GgufConfig(dequantize=True),
    )
    return model, tokenizer
