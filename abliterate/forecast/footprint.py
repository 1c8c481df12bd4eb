"""The memory that a step of a run takes at its peak: of the process on a CPU, of the device on a GPU.

What is not counted from shapes was measured (docs/benchmarks.md, "plan against measured"): the program itself, what a block's
own arithmetic holds of a token, and what the system's allocator keeps of what is let go of.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abliterate.compute.blockwise.blocks import HEAD_ROWS
from abliterate.compute.memory import PROGRAM, Holding, Sizes
from abliterate.compute.whole.gradients import SHARE, TOKENS, kept_bytes
from abliterate.forecast.arithmetic import Arithmetic
from abliterate.forecast.flow import Flow
from abliterate.forecast.steps import Prompts
from abliterate.model.folder import ModelFolder

EDITING = 480 << 20  # bytes: the program without a tokenizer and a model
_CHUNK = 64 << 20  # bytes of an edited tensor in float32
_WIDEST, _STREAMS = 6.4, 16  # times the widest side of a block, and d_model: numbers that computing a token holds
_OF_A_LOGIT = 10  # bytes beside the type it is computed in: float32, and its logarithm
_GROWING = 0.35  # of the keys and values: what writing replies takes beside them, step after step, and the C library keeps
_FLOAT, _DOUBLE = 4, 8


@dataclass(frozen=True)
class Model:
    """What is known of a model and how it is held; ``quantised``: its numbers are dequantised when they are read."""

    folder: ModelFolder
    sizes: Sizes
    costs: Arithmetic
    held: Holding
    device: torch.device
    stored_bytes: int
    stored_width: int
    quantised: bool

    @property
    def width(self) -> int:
        return self.held.dtype.itemsize

    @property
    def program(self) -> int:
        return PROGRAM if self.device.type == "cpu" else 0


def streams_bytes(model: Model, flow: Flow) -> int:
    """Bytes of the streams that are kept from block to block: of all prompts, where the weights are read block by block."""
    return 0 if model.held.whole else flow.tokens * model.folder.d_model * model.width


def cache_bytes(model: Model, flow: Flow) -> int:
    """Bytes of the keys and values that are kept for the next tokens of replies."""
    return flow.held * model.costs.kept * model.width


def collected_bytes(model: Model, prompts: Prompts) -> int:
    """Bytes of the vectors and the statistics that are collected, which stay in memory to the end of a run."""
    one = (model.folder.layers + 1) * model.folder.d_model
    vectors = sum(len(ids) for ids in prompts.train.values())
    vectors += prompts.positions * sum(len(prompts.val[role]) for role in ("target", "baseline"))
    groups = len(prompts.train) + 2 + 2 * prompts.languages
    if "keep" in prompts.val:  # of each keep set, kept apart, and of the harmless prompts
        vectors += sum(len(prompts.val[role]) for role in ("harmless", "keep")) + len(prompts.train["keep"])
        groups += 2 + 2
    return one * (vectors * _FLOAT + groups * prompts.positions * 2 * _DOUBLE)


def peak_bytes(model: Model, flow: Flow, collected: int) -> int:
    """Of one step; ``collected`` bytes of results are there beside it, on the CPU."""
    beside = cache_bytes(model, flow) + (collected if model.device.type == "cpu" else 0)
    logits = flow.logits_at_once * (model.width + _OF_A_LOGIT)
    computing = flow.largest * int(_WIDEST * model.sizes.widest + _STREAMS * model.folder.d_model) * model.width
    if model.held.whole:
        beside += int(_GROWING * cache_bytes(model, flow)) if model.device.type == "cpu" else 0
        return model.program + beside + model.sizes.total * model.width + max(computing, logits)
    beside += min(streams_bytes(model, flow), model.held.spill_bytes) + model.sizes.outside * model.width
    block = model.sizes.block * model.width
    through = block * (2 if model.held.ahead else 1) + _coming(model) + computing
    head = model.sizes.head * model.width if model.held.whole_head else HEAD_ROWS * model.folder.d_model * model.width
    leaving = head + logits + block // 2
    return model.program + beside + max(through, leaving if flow.heads else 0)


def gradient_bytes(model: Model, flow: Flow, collected: int) -> int:
    """Of a step that takes gradients: what a micro-batch's graph keeps, in at most the share of the free memory that it may take."""
    fixed = peak_bytes(model, flow, collected)
    kept = min(TOKENS, flow.tokens) * kept_bytes(model.folder.config, model.width)
    return fixed + min(kept, int(SHARE * max(0, model.held.budget - fixed)))


def loading_bytes(model: Model) -> int:
    """At the peak of loading a model that is held whole: where its type is another one, the shards are there too, as mapped files."""
    mapped = model.stored_bytes if model.device.type == "cpu" and model.stored_width != model.width else 0
    return model.program + model.sizes.total * model.width + mapped if model.held.whole else 0


def editing_bytes(largest: int) -> int:
    """Of an edit whose two largest tensors have so many bytes: it holds a tensor in each of two threads."""
    return EDITING + largest + min(_CHUNK, 2 * largest)


def _coming(model: Model) -> int:
    """Bytes of what is there twice while a block is read: one tensor as it is stored, or a block's experts before they are one."""
    largest, merged = model.sizes.largest, model.sizes.merged
    dequantised = largest * _FLOAT if model.quantised else 0
    raw = largest * model.stored_width if model.quantised or model.stored_width != model.width else 0
    return merged * model.width + raw + dequantised + (largest * model.width if raw and not merged else 0)
