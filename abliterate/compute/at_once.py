"""How much a model in memory computes at once, and how that is reduced when memory runs out."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import psutil
import torch
from transformers import PretrainedConfig

from abliterate.compute.forward import Batch, packed
from abliterate.compute.passes import Ids

T = TypeVar("T")
# Defaults, measured on a CPU (docs/benchmarks.md), where more only overflows the caches; a GPU needs more.
TOKENS = {"cpu": 512, "mps": 4096, "cuda": 16384}
ROWS = {"cpu": 128, "mps": 128, "cuda": 256}
ROW_TOKENS = 256  # of a prompt with its reply, for the memory estimate
SHARE = 0.25  # of the device's memory, for the KV cache of replies
LOGIT_NUMBERS = 16_000_000  # logits in one batch
_NO_LIMIT = 1 << 30
# Messages of allocators other than CUDA's, which raise a plain RuntimeError.
_SAID = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass
class AtOnce:
    """``rows`` replies are written together; ``prompts`` prompts with ``tokens`` tokens in all go through the model together."""

    rows: int
    prompts: int
    tokens: int


def at_once(batch_size: int | None, config: PretrainedConfig, device: torch.device, itemsize: int, memory: int | None) -> AtOnce:
    """``batch_size`` if given, else what is fast on the device and keeps the KV cache within ``memory`` bytes (default: a share of all).

    The result depends only on the model and the machine, so that a resumed run computes the same batches.
    """
    if batch_size is not None:
        return AtOnce(batch_size, batch_size, _NO_LIMIT)
    rows = ROWS.get(device.type, ROWS["cpu"])
    # Blocks that cache more per token than this are rare; many cache less.
    row = 2 * int(config.num_hidden_layers) * int(config.hidden_size) * itemsize * ROW_TOKENS
    while rows > 1 and rows * row > (SHARE * _total(device) if memory is None else memory):
        rows //= 2
    return AtOnce(rows, _NO_LIMIT, TOKENS.get(device.type, TOKENS["cpu"]))


def _total(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def each_batch(
    sequences: Ids, pad: int, amount: AtOnce, device: torch.device, compute: Callable[[Batch], T], shared: int = 0, padded: bool = True,
    rows: int = _NO_LIMIT,
) -> Iterator[tuple[Batch, T]]:  # fmt: skip
    """Yield what ``compute`` returns for all sequences, batch by batch; ``amount`` and ``packed`` decide the batches.

    If memory runs out, batches are half as large from there on, and ``amount`` is reduced for later calls.
    """
    left = list(range(len(sequences)))
    while left:
        done: set[int] = set()
        for batch in packed([sequences[i] for i in left], pad, amount.tokens, min(rows, amount.prompts), device, shared, padded):
            try:
                made = compute(batch)
            except RuntimeError as error:
                if len(batch.indices) == 1 or not is_out_of_memory(error):
                    raise
                amount.prompts = len(batch.indices) // 2
                break
            done.update(batch.indices)
            yield replace(batch, indices=tuple(left[i] for i in batch.indices)), made
        else:
            return
        let_go_of_memory()
        left = [index for place, index in enumerate(left) if place not in done]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that memory ran out, so that a smaller batch may work."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error).lower() for words in _SAID)


def let_go_of_memory() -> None:
    """Free memory that nothing refers to any more."""
    gc.collect()
    trim()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim() -> None:
    """Return free memory between tensors to the system; the C library would keep it."""
    if (give_back := _malloc_trim()) is not None:
        give_back(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's ``malloc_trim``; None with another C library."""
    if not sys.platform.startswith("linux"):
        return None
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found
