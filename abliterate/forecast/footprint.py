"""The peak memory of a step of a run: of the process on a CPU, of the device on a GPU.

What shapes don't tell was measured (docs/benchmarks.md, "`plan` against measurements"): the program itself, a block's temporary memory per
token, and freed memory that the system's allocator keeps.
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

EDITING = 480 << 20  # bytes of the program without a tokenizer and a model
_CHUNK = 64 << 20  # bytes of an edited tensor in float32
_WIDEST, _STREAMS = 6.4, 16  # elements held per computed token, in units of a block's widest side and of d_model
_OF_A_LOGIT = 10  # additional bytes per logit: a float32 copy and its logarithm
_GROWING = 0.35  # share of the KV cache that generation needs in addition, and that the C library keeps
_FLOAT, _DOUBLE = 4, 8


@dataclass(frozen=True)
class Model:
    """A model and how it is held. ``quantised``: its weights are dequantised when they are read."""

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
    """Bytes of the residual streams kept from block to block: of all prompts, if the weights are read block by block; else 0."""
    return 0 if model.held.whole else flow.tokens * model.folder.d_model * model.width


def cache_bytes(model: Model, flow: Flow) -> int:
    """Bytes of the KV cache during generation."""
    return flow.held * model.costs.kept * model.width


def collected_bytes(model: Model, prompts: Prompts) -> int:
    """Bytes of the collected vectors and statistics, which stay in memory until the run ends."""
    one = (model.folder.layers + 1) * model.folder.d_model
    vectors = sum(len(ids) for ids in prompts.train.values())
    vectors += prompts.positions * sum(len(prompts.val[role]) for role in ("target", "baseline"))
    groups = len(prompts.train) + 2 + 2 * prompts.languages
    if "keep" in prompts.val:  # each keep set separately, and the harmless prompts
        vectors += sum(len(prompts.val[role]) for role in ("harmless", "keep")) + len(prompts.train["keep"])
        groups += 2 + 2
    return one * (vectors * _FLOAT + groups * prompts.positions * 2 * _DOUBLE)


def peak_bytes(model: Model, flow: Flow, collected: int) -> int:
    """Peak bytes of one step; on a CPU, ``collected`` bytes of results add to it."""
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
    """Peak bytes of a step with gradients: adds what a micro-batch's graph keeps, within its share of the free memory, and on a CPU two
    square matrices per block for directions."""
    matrices = 2 * _FLOAT * model.folder.layers * model.folder.d_model**2 if model.device.type == "cpu" else 0
    fixed = peak_bytes(model, flow, collected) + matrices
    kept = min(TOKENS, flow.tokens) * kept_bytes(model.folder.config, model.width)
    return fixed + min(kept, int(SHARE * max(0, model.held.budget - fixed)))


def loading_bytes(model: Model) -> int:
    """Peak bytes while a model that is held whole is loaded; if its type changes, the mapped shards are in memory too."""
    mapped = model.stored_bytes if model.device.type == "cpu" and model.stored_width != model.width else 0
    return model.program + model.sizes.total * model.width + mapped if model.held.whole else 0


def editing_bytes(largest: int) -> int:
    """Peak bytes of an edit. ``largest``: bytes of the two largest tensors; each of two threads holds one."""
    return EDITING + largest + min(_CHUNK, 2 * largest)


def _coming(model: Model) -> int:
    """Bytes held twice while a block is read: one tensor in its stored form, or a block's experts before they are merged."""
    largest, merged = model.sizes.largest, model.sizes.merged
    dequantised = largest * _FLOAT if model.quantised else 0
    raw = largest * model.stored_width if model.quantised or model.stored_width != model.width else 0
    return merged * model.width + raw + dequantised + (largest * model.width if raw and not merged else 0)
