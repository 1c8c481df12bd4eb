"""How much memory a model may use, and whether it is held whole or read block by block: decided from headers, before anything runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from abliterate.compute.load import DTypeName, pick_dtype
from abliterate.errors import InputError
from abliterate.model.folder import ModelFolder
from abliterate.model.index import ShardIndex
from abliterate.model.stored import Stored, by_block
from abliterate.model.tensor_names import text_name

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_EXPERT = re.compile(r"\.experts\.\d+\.")
_SHARE = 0.9  # of the free memory
_LEAST = 1 << 20  # bytes; a smaller number probably lacks its unit
PROGRAM = 650 << 20  # bytes: Python, torch and transformers
SLACK = 1.05
MIN_TOKENS, MAX_TOKENS = 64, {"cpu": 2048, "cuda": 16384, "mps": 4096}
WORKING = 256 << 20  # logits of one micro-batch, statistics, the tokenizer


def parse_size(given: str) -> int:
    """The bytes in ``6GiB``, ``500 MB`` or ``4194304``. Raises InputError for anything else, and for less than 1 MiB."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", given.lower())
    if match is None or match[2] == "i" or float(match[1]) <= 0:
        raise InputError(f"--max-memory {given!r}: not a size; write it like 6GiB or 500MB")
    nbytes = int(float(match[1]) * _UNITS[match[2]])
    if nbytes < _LEAST:
        raise InputError(f"--max-memory {given!r}: that is {nbytes} bytes; give it with a unit, as in 6GiB")
    return nbytes


def parse_budget(given: str | None, device: torch.device) -> int | None:
    """The bytes that ``6GiB``, or ``cpu=32GiB,cuda:0=20GiB``, allows on a device; None if it doesn't mention the device.

    Raises InputError for anything else.
    """
    for part in (given or "").split(","):
        name, equals, size = part.partition("=")
        if not equals and given:
            return parse_size(part)
        if equals and name.strip() in (device.type, str(device)):
            return parse_size(size)
    return None


def available(device: torch.device) -> int:
    """Bytes that this process may use on a device, including what it uses already: nine tenths of what is free, within cgroup limits."""
    if device.type == "cuda":
        return free(device) + int(torch.cuda.memory_reserved(device))
    return int(psutil.Process().memory_info().rss) + free(device)


def free(device: torch.device) -> int:
    """Bytes that this process may use in addition to what it uses already."""
    if device.type == "cuda":
        return int(_SHARE * torch.cuda.mem_get_info(device)[0])
    own, there = int(psutil.Process().memory_info().rss), int(psutil.virtual_memory().available)
    limit = _cgroup_limit()
    return int(_SHARE * min(there, max(0, limit - own) if limit is not None else there))


def _cgroup_limit(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The lowest memory limit of the control groups that this process is in (version 1 and 2); None if there is none."""
    limits: list[int] = []
    try:
        lines = own.read_text().split()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        here = base / path.lstrip("/")
        for folder in (here, *here.parents):
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < 1 << 60:
                limits.append(int(text))
            if folder == base:
                break
    return min(limits, default=None)


@dataclass(frozen=True)
class Holding:
    """How a model is held in ``budget`` bytes of a device (on a CPU: of the whole process).

    ``whole``: held whole. Otherwise block by block: ``ahead`` reads the next block while one computes, ``whole_head`` holds the whole
    unembedding for logits, ``tokens`` are computed at once, ``spill_bytes`` of streams stay in memory. ``peak``: the expected use in
    bytes. ``gpus``: the model is held whole by several GPUs, with at most so many bytes on each.
    """

    budget: int
    dtype: torch.dtype
    whole: bool
    peak: int
    ahead: bool = True
    whole_head: bool = True
    tokens: int = 2048
    spill_bytes: int = 0
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """Element counts (not bytes) of a model: in all, in its largest block, outside the blocks (without the embeddings), in the unembedding.

    ``widest`` is the longest side of a block's matrices, ``largest`` the element count of a block's largest tensor, ``merged`` that of the
    experts of one block that are separate on disk and one tensor in memory.
    """

    total: int
    block: int
    outside: int
    head: int
    widest: int
    largest: int
    merged: int = 0


def sizes_of(index: ShardIndex, folder: ModelFolder) -> Sizes:
    """A model's sizes, from headers alone. Raises InputError if a block has no tensors."""
    stored = by_block(index, folder)
    apart = {folder.layout.embedding, folder.layout.unembedding}
    blocks = [stored[layer] for layer in range(folder.layers)]
    head = folder.layout.embedding if folder.tied else folder.layout.unembedding
    inside: list[Stored] = [s for tensors in blocks for s in tensors]
    return Sizes(
        total=sum(s.count for tensors in stored.values() for s in tensors),
        block=max(sum(s.count for s in tensors) for tensors in blocks),
        outside=sum(s.count for s in stored[None] if text_name(s.name) not in apart),
        head=sum(s.count for s in stored[None] if text_name(s.name) == head),
        widest=max(max(index.tensors[s.name].shape[-2:], default=1) for s in inside),
        largest=max(s.count for s in inside),
        merged=max(sum(s.count for s in tensors if _EXPERT.search(s.name)) for tensors in blocks),
    )


def holding_of(sizes: Sizes, dtype: DTypeName, device: torch.device, budget: int | None = None) -> Holding:
    """Decide whether the model is held whole and, if not, how it is read block by block.

    ``auto`` computes in float32 on a CPU if the model fits that way, else in bf16 if the processor has instructions for it. Raises
    InputError if not even one block fits.
    """
    room = available(device) if budget is None else budget
    picked = pick_dtype(dtype, device)
    needed = whole(sizes, picked, device)
    if needed <= room:
        return Holding(room, picked, True, needed)
    if dtype == "auto" and device.type == "cpu" and has_bf16_instructions():
        picked = torch.bfloat16
    return _by_block(sizes, picked, device, room)


def holding_on_gpus(sizes: Sizes, dtype: DTypeName, budgets: Sequence[int]) -> Holding | None:
    """Spread the model over several GPUs (accelerate's dispatch); None if one is enough, or if all together are too small."""
    if len(budgets) < 2:
        return None
    picked = pick_dtype(dtype, torch.device("cuda"))
    whole, each = int(SLACK * sizes.total * picked.itemsize), WORKING + sizes.block * picked.itemsize
    if whole + WORKING <= max(budgets) or whole + len(budgets) * each > sum(budgets):
        return None
    return Holding(sum(budgets), picked, True, whole + len(budgets) * WORKING, gpus=tuple(budgets))


def whole(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes needed to hold the model whole."""
    return int(SLACK * sizes.total * dtype.itemsize) + WORKING + (PROGRAM if device.type == "cpu" else 0)


def least(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes needed to compute anything: for one block and what goes with it."""
    fixed, block, coming, a_token = _needs(sizes, dtype, device)
    return fixed + block + coming + MIN_TOKENS * a_token


def _needs(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> tuple[int, int, int, int]:
    """Bytes that are always in use, for one block, for what is held twice while a block is read, and per computed token."""
    width = dtype.itemsize
    fixed = (PROGRAM if device.type == "cpu" else 0) + WORKING + sizes.outside * width
    return fixed, sizes.block * width, sizes.largest * 4 + sizes.merged * width, 8 * sizes.widest * width


def _by_block(sizes: Sizes, dtype: torch.dtype, device: torch.device, room: int) -> Holding:
    width = dtype.itemsize
    fixed, block, coming, a_token = _needs(sizes, dtype, device)
    needed = least(sizes, dtype, device)
    if needed > room:
        raise InputError(_too_little(sizes, dtype, device, room))
    ahead = needed + block <= room
    left = room - fixed - coming - block * (2 if ahead else 1)
    tokens = max(MIN_TOKENS, min(MAX_TOKENS.get(device.type, 2048), int(left / 2 / a_token)))
    spill = max(0, int(left - tokens * a_token) // 2)
    whole_head = fixed + sizes.head * width + sizes.head * 2 + tokens * a_token <= room
    computing = block * (2 if ahead else 1) + coming + tokens * a_token
    peak = fixed + max(computing, sizes.head * (width + 2) if whole_head else 0)
    return Holding(room, dtype, False, peak, ahead, whole_head, tokens, spill)


def _too_little(sizes: Sizes, dtype: torch.dtype, device: torch.device, room: int) -> str:
    """An error message with what one block needs, and what that consists of."""
    program, needed = PROGRAM if device.type == "cpu" else 0, least(sizes, dtype, device)
    parts = [(program, "for the program"), (WORKING, "to work in"), (needed - program - WORKING, "for the model")]
    told = ", ".join(f"{nbytes / 2**30:.2f} {what}" for nbytes, what in parts if nbytes)
    narrower = ", or --dtype bfloat16" if dtype.itemsize > torch.bfloat16.itemsize else ""
    return (
        f"--max-memory: one block needs {needed / 2**30:.2f} GiB in {str(dtype).removeprefix('torch.')} ({told}), "
        f"but only {room / 2**30:.2f} are available; allow more{narrower}"
    )


def has_bf16_instructions() -> bool:
    """Whether this processor multiplies bf16 matrices faster than float32 ones."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
