"""Measure the speed of this machine in two seconds: its disk, matrix products, and edits."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from abliterate.checkpoint.orthogonalise import read_component, remove
from abliterate.checkpoint.stream import WORKERS
from abliterate.model.formats.format import InPlace
from abliterate.model.index import ShardIndex
from abliterate.model.removal import removal

_CHUNK = 8 << 20  # bytes of one read
_READING, _WRITING, _MULTIPLYING, _EDITING = 0.5, 0.3, 0.3, 0.2  # seconds
_WRITTEN = 256 << 20  # bytes of the temporary file at most
_MATRIX = 1 << 25  # elements of the matrix in the measured products
_ROWS, _COLUMNS = 1024, 1152  # of the edited piece


@dataclass(frozen=True)
class Machine:
    """Bytes per second: ``read`` from disk, ``again`` from the page cache, ``write``. Operations per second of matrix products: ``many``
    rows at once, as for prompts, and ``few``, as for the next tokens of replies. Elements per second: ``edit`` of a writer, ``widen``
    from the stored type to the compute type (None: they are the same). ``how``: what was read, and whether it came from disk.
    """

    read: float
    again: float
    write: float
    many: float
    few: float
    edit: float
    widen: float | None
    how: str


@dataclass(frozen=True)
class Shapes:
    """The shapes to measure with: products of ``many`` and of ``few`` rows with a ``wide`` x ``d_model`` matrix, in ``dtype`` on
    ``device``; ``stored``, ``kind``: the format of the stored weights, and their type as safetensors calls it."""

    many: int
    few: int
    d_model: int
    wide: int
    dtype: torch.dtype
    stored: InPlace
    kind: str
    device: torch.device


def measure(index: ShardIndex, here: bool, shapes: Shapes) -> Machine:
    """Measure the machine; takes about two seconds. Reads the model's own shards if they are ``here``, else a temporary file."""
    with tempfile.NamedTemporaryFile(prefix="abliterate-plan-") as file:
        write = _written(Path(file.name))
        files = [index.folder / name for name in index.shards] if here else [Path(file.name)]
        read, again, dropped = _read(files)
    many, few = _products(shapes)
    return Machine(
        read=read,
        again=again,
        write=write or read,
        many=many,
        few=few,
        edit=_edited(shapes),
        widen=_widened(shapes),
        how=("the model's own shards" if here else "a temporary file") + (", not from the page cache" if dropped else ", possibly cached"),
    )


def _written(path: Path) -> float | None:
    """Bytes per second of writing, until they are on disk; None if the disk is full."""
    data = os.urandom(1 << 20) * (_CHUNK >> 20)
    started, done = time.perf_counter(), 0
    try:
        with path.open("wb") as file:
            while done < _WRITTEN and time.perf_counter() - started < _WRITING / 2:
                done += file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return None
    return done / max(time.perf_counter() - started, 1e-9)


def _read(files: Sequence[Path]) -> tuple[float, float, bool]:
    """Bytes per second from disk, then again from the page cache, and whether the pages could be dropped from the cache first."""
    buffer = memoryview(bytearray(_CHUNK))
    places = _places(files)
    first, count = _timed_reads(places, buffer, _READING, cold=True)
    second, _ = _timed_reads(places[:count], buffer, _READING / 4, cold=False)
    return first, max(first, second), hasattr(os, "posix_fadvise")


def _places(files: Sequence[Path]) -> list[tuple[Path, int]]:
    """Where to read: places spread over all files, so that no read continues the previous one."""
    found: list[tuple[Path, int]] = []
    for file in files:
        with suppress(OSError):
            size = file.stat().st_size
            found += [(file, start) for start in range(0, max(size - _CHUNK, 1), _CHUNK)]
    step = max(1, len(found) // 256)
    return found[::step] if found else []


def _timed_reads(places: Sequence[tuple[Path, int]], buffer: memoryview, seconds: float, cold: bool) -> tuple[float, int]:
    """Bytes per second, and the number of places read. ``cold``: drop them from the page cache first, if the system allows it."""
    started, done, count = time.perf_counter(), 0, 0
    for file, start in places:
        with suppress(OSError), file.open("rb", buffering=0) as opened:
            if cold and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(opened.fileno(), start, len(buffer), os.POSIX_FADV_DONTNEED)
            opened.seek(start)
            done += opened.readinto(buffer) or 0
        count += 1
        if time.perf_counter() - started > seconds:
            break
    return max(done, 1) / max(time.perf_counter() - started, 1e-9), count


@torch.inference_mode()
def _products(shapes: Shapes) -> tuple[float, float]:
    """Floating-point operations per second of matrix products: with many rows, and with few."""
    wide = max(1, min(shapes.wide, _MATRIX // shapes.d_model))
    weight = torch.full((wide, shapes.d_model), 0.25, dtype=shapes.dtype, device=shapes.device)
    found = []
    for rows in (shapes.many, shapes.few):
        stream = torch.full((rows, shapes.d_model), 0.5, dtype=shapes.dtype, device=shapes.device)
        found.append(2.0 * rows * weight.numel() * _rate(partial(_product, stream, weight, shapes.device), _MULTIPLYING))
    return found[0], found[1]


def _product(stream: Tensor, weight: Tensor, device: torch.device) -> None:
    linear(stream, weight)
    _wait(device)


def _rate(act: Callable[[], object], seconds: float) -> float:
    """Calls per second. The first call counts only if it takes the whole time."""
    started, count = time.perf_counter(), 1
    act()
    if time.perf_counter() - started < seconds:
        started, count = time.perf_counter(), 0
        while not count or time.perf_counter() - started < seconds:
            act()
            count += 1
    return count / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _slab(shapes: Shapes) -> list[Tensor]:
    """A piece of a writer as it is stored, with its scales if it has any."""
    return shapes.stored.encode(torch.linspace(-1, 1, _ROWS * _COLUMNS).view(_ROWS, _COLUMNS), shapes.kind)


@torch.inference_mode()
def _edited(shapes: Shapes) -> float:
    """Elements per second from which an edit removes a direction, with all of its threads."""
    slab, task = _slab(shapes), removal(torch.eye(1, _ROWS))

    def change(wide: Tensor) -> None:
        remove(wide, task, 1.0, 0, read_component(wide, task, 0))

    def act(_: int) -> None:
        shapes.stored.rewrite([part.clone() for part in slab], change, task.q, "")

    with ThreadPoolExecutor(WORKERS) as pool:
        return WORKERS * _ROWS * _COLUMNS * _rate(lambda: list(pool.map(act, range(WORKERS))), _EDITING)


@torch.inference_mode()
def _widened(shapes: Shapes) -> float | None:
    """Elements per second converted from the stored type to the compute type; None if they are the same."""
    slab = _slab(shapes)
    if shapes.stored.value_type(shapes.kind) == shapes.kind and slab[0].dtype == shapes.dtype:
        return None
    return _ROWS * _COLUMNS * _rate(lambda: shapes.stored.values(slab).to(shapes.dtype), _EDITING)
