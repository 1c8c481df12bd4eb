"""The cost of one token, from the shapes of a model's tensors: multiplications, bytes on disk, keys and values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

from abliterate.compute.prefix import kinds_of
from abliterate.model.folder import ModelFolder
from abliterate.model.index import ShardIndex
from abliterate.model.stored import Stored, by_block
from abliterate.model.tensor_names import text_name

_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_FUSED = ("experts", "moe")  # in the name of a tensor that holds all experts of a block
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")  # experts per token, by family
_ATTENDING = ("DynamicLayer", "DynamicSlidingWindowLayer")


@dataclass(frozen=True)
class Arithmetic:
    """``working``: weights of the blocks that a token is multiplied with (of experts only the chosen ones). ``head``: weights of the
    unembedding. ``seen``: floating-point operations of a token for every token that it attends to, in all blocks. ``kept``: elements of
    its keys and values. ``sweep_bytes``: bytes read from disk for all blocks; ``head_bytes``: for the unembedding.
    """

    working: int
    head: int
    seen: int
    kept: int
    sweep_bytes: int
    head_bytes: int

    def flops(self, rows: int, tokens: int, context: int, logits: int) -> float:
        """Floating-point operations of ``rows`` rows of ``tokens`` tokens that each attend to ``context`` tokens; ``logits`` per row."""
        return float(rows) * (tokens * (2.0 * self.working + float(self.seen) * context) + logits * 2.0 * self.head)


def arithmetic_of(index: ShardIndex, folder: ModelFolder) -> Arithmetic:
    """The costs, from headers and the config alone. Raises InputError if a block has no tensors."""
    stored = by_block(index, folder)
    chosen = _chosen(folder.config)
    blocks = [stored[layer] for layer in range(folder.layers)]
    head = next((s for s in stored[None] if text_name(s.name) == _unembedding(folder)), None)
    heads, width = _heads(folder.config)
    attending = _attending(folder)
    return Arithmetic(
        working=sum(_working(index, tensors, chosen) for tensors in blocks),
        head=head.count if head else 0,
        seen=2 * heads * width * attending,
        kept=_kept(folder.config) * attending,
        sweep_bytes=sum(_stored_bytes(s) for tensors in blocks for s in tensors),
        head_bytes=_stored_bytes(head) if head else 0,
    )


def _stored_bytes(stored: Stored) -> int:
    """Bytes on disk of a tensor and its scales."""
    return sum(part.nbytes for part in stored.parts)


def _unembedding(folder: ModelFolder) -> str:
    return folder.layout.embedding if folder.tied else folder.layout.unembedding


def _chosen(config: PretrainedConfig) -> int | None:
    """The number of experts per token; None if the config doesn't say."""
    for key in _CHOSEN:
        given = getattr(config, key, None)
        if isinstance(given, list):
            given = max(given, default=None)
        if isinstance(given, int):
            return given
    return None


def _working(index: ShardIndex, tensors: Sequence[Stored], chosen: int | None) -> int:
    """The weights of one block's matrices that a token is multiplied with."""
    single = len({match[1] for tensor in tensors if (match := _EXPERT.search(tensor.name))})
    working = 0
    for tensor in tensors:
        shape = index.tensors[tensor.name].shape
        if len(shape) < 2:
            continue
        fused = len(shape) > 2 and any(word in tensor.name for word in _FUSED)
        experts = single if _EXPERT.search(tensor.name) else shape[0] if fused else 1
        working += tensor.count * min(chosen or experts, experts) // max(experts, 1)
    return working


def _attending(folder: ModelFolder) -> int:
    """The number of blocks that cache a key and a value for each token."""
    try:
        return sum(kind.__name__ in _ATTENDING for kind in kinds_of(folder.config))
    except (KeyError, ValueError, AttributeError):  # transformers has no cache for one of its kinds of layers
        return folder.layers


def _heads(config: PretrainedConfig) -> tuple[int, int]:
    """The number of attention heads, and the size of a query plus the size of a value in one head."""
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    return heads, _compared(config) + int(getattr(config, "v_head_dim", None) or _compared(config))


def _compared(config: PretrainedConfig) -> int:
    """The size of a query in one head."""
    parts = [getattr(config, key, None) for key in ("qk_nope_head_dim", "qk_rope_head_dim")]
    if all(isinstance(part, int) for part in parts):
        return sum(part for part in parts if isinstance(part, int))
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    return int(getattr(config, "head_dim", None) or int(getattr(config, "hidden_size", 0)) // heads)


def _kept(config: PretrainedConfig) -> int:
    """Elements of a token's keys and values in one block, as transformers caches them: compressed ones (MLA) are cached expanded."""
    heads, both = _heads(config)
    shared = isinstance(getattr(config, "kv_lora_rank", None), int)
    return (heads if shared else int(getattr(config, "num_key_value_heads", None) or heads)) * both
