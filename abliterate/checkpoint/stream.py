"""Write the new shards from the old ones: copy unchanged byte ranges from file to file, edit other tensors in one buffer each.

The pieces of all shards are independent, so a few threads process them: while one waits for the disk, another computes.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor

from abliterate.checkpoint.orthogonalise import Readings, read_component, remove
from abliterate.checkpoint.output import NewShard, Output
from abliterate.checkpoint.tasks import EditTask
from abliterate.errors import InputError
from abliterate.model.formats.format import InPlace, StoredFormat
from abliterate.model.index import ShardIndex, reading, stamp

WORKERS = 2  # bounds the memory, because each worker holds one tensor
_PIECE = 1 << 27  # bytes per copy job
# Errors of file systems that can't copy byte ranges.
_NO_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


@dataclass(frozen=True)
class Before:
    """A tensor before its edit: its component along the directions and its norm (as they enter the stream), and a hash of its bytes.

    ``aim``: the component that exact arithmetic would leave. For formats that round coarsely, ``rounding`` is the relative error of the
    stored result against the exact edit, and ``plain_rounding`` the error if each value were rounded to the nearest.
    """

    component: float
    aim: float
    size: float
    blake3: str
    rounding: float | None = None
    plain_rounding: float | None = None


def write_shards(
    index: ShardIndex, output: Output, tasks: Mapping[str, EditTask], out: Path, advance: Callable[[int], None] = lambda done: None
) -> dict[str, Before]:
    """Write every shard of ``output``. ``advance`` counts bytes. Returns each edited tensor's state before the edit.

    Raises InputError for a tensor with NaN or infinity, or if a source file changes or is truncated while it is read.
    """
    before: dict[str, Before] = {}
    with ExitStack() as stack:
        files = _Files(index, output, out, stack)
        with ThreadPoolExecutor(WORKERS) as pool:
            futures = [pool.submit(job) for job in _jobs(index, output, tasks, files, before.__setitem__, advance)]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    with reading(index.folder):
        changed = any(stamp(index.folder / name) != seen for name, seen in index.stamps.items())
    if changed:
        raise InputError(f"{index.folder}: a shard changed while it was read; run again when nothing writes to the folder")
    return before


class _Files:
    """The open shards. Jobs read and write at offsets, so threads can share them."""

    def __init__(self, index: ShardIndex, output: Output, out: Path, stack: ExitStack) -> None:
        with reading(index.folder):
            self.read = {name: stack.enter_context((index.folder / name).open("rb")).fileno() for name in index.shards}
        self.write: dict[str, int] = {}
        for shard in output.shards:
            file = stack.enter_context((out / shard.name).open("xb"))
            os.truncate(file.fileno(), shard.nbytes)
            self.write[shard.name] = file.fileno()


def _jobs(
    index: ShardIndex,
    output: Output,
    tasks: Mapping[str, EditTask],
    files: _Files,
    note: Callable[[str, Before], None],
    advance: Callable[[int], None],
) -> list[Callable[[], None]]:
    """The edit and copy jobs, in byte order, so that files are read and written sequentially. ``note`` gets each edited tensor's state
    before the edit."""
    jobs: list[Callable[[], None]] = []
    followers = companions(tasks.values())
    for shard in output.shards:
        runs = _Runs(files.write[shard.name], advance)
        runs.header(shard, files)
        for info in shard.tensors:
            task, leaving = tasks.get(info.name), output.leaves(info.name, index)
            if task is not None:
                jobs += runs.flush()
                jobs.append(partial(_edit, index, task, output, files, note, advance))
            elif leaving is not None:
                jobs += runs.flush()
                jobs.append(partial(_unpack, index, info.name, leaving, output, files, advance))
            elif info.name not in followers:
                source = index.tensors[output.untied[0] if output.untied and info.name == output.untied[1] else info.name]
                runs.add(files.read[source.shard], source.start, info.start, info.nbytes)
        jobs += runs.flush()
    return jobs


def companions(tasks: Iterable[EditTask]) -> set[str]:
    """The tensors of the new checkpoint that are written with an edited one: its scales."""
    return {part for task in tasks for part in task.stored.written.parts(task.name)[1:]}


class _Runs:
    """Byte ranges to copy; ranges that are adjacent in both files are joined."""

    def __init__(self, target: int, advance: Callable[[int], None]) -> None:
        self._target, self._advance = target, advance
        self._runs: list[list[int]] = []

    def header(self, shard: NewShard, files: _Files) -> None:
        _write_at(files.write[shard.name], memoryview(shard.header), 0)
        self._advance(len(shard.header) - shard.marked)

    def add(self, source: int, start: int, to: int, count: int) -> None:
        last = self._runs[-1] if self._runs else None
        if last and last[0] == source and last[1] + last[3] == start and last[2] + last[3] == to:
            last[3] += count
        elif count:
            self._runs.append([source, start, to, count])

    def flush(self) -> list[Callable[[], None]]:
        jobs: list[Callable[[], None]] = []
        for source, start, to, count in self._runs:
            for at in range(0, count, _PIECE):
                jobs.append(partial(_copy, source, start + at, self._target, to + at, min(_PIECE, count - at), self._advance))
        self._runs = []
        return jobs


def _copy(source: int, start: int, target: int, to: int, count: int, advance: Callable[[int], None]) -> None:
    """Copy bytes from file to file in the kernel (shared, if the file system can), or through memory if it can't."""
    left = count
    while left:
        try:
            done = os.copy_file_range(source, target, left, start, to)
        except (OSError, AttributeError) as error:  # only Linux has copy_file_range
            if isinstance(error, OSError) and error.errno not in _NO_RANGE:
                raise
            data = os.pread(source, min(left, 1 << 24), start)
            _write_at(target, memoryview(data), to)
            done = len(data)
        if not done:
            raise InputError("a shard became shorter while it was read; run again when nothing writes to the folder")
        left, start, to = left - done, start + done, to + done
        advance(done)


def _write_at(target: int, data: memoryview, to: int) -> None:
    while data:
        done = os.pwrite(target, data, to)
        data, to = data[done:], to + done


def _edit(
    index: ShardIndex,
    task: EditTask,
    output: Output,
    files: _Files,
    note: Callable[[str, Before], None],
    advance: Callable[[int], None],
) -> None:
    """Read one tensor, edit it in a buffer, and write it."""
    found, parts = edited(index, task)
    _write(parts, output, files, advance)
    note(task.name, found)


def _unpack(index: ShardIndex, name: str, stored: StoredFormat, output: Output, files: _Files, advance: Callable[[int], None]) -> None:
    """Read one tensor and write its values."""
    _write(unpacked(index, name, stored), output, files, advance)


def _write(parts: Mapping[str, Tensor], output: Output, files: _Files, advance: Callable[[int], None]) -> None:
    for part, tensor in parts.items():
        place = output.tensors[part]
        _write_at(files.write[place.shard], bytes_of(tensor), place.start)
        advance(place.nbytes)


def edited(index: ShardIndex, task: EditTask) -> tuple[Before, dict[str, Tensor]]:
    """A tensor's state before the edit, and what it is stored as after it: its bytes, with its scales if it has any."""
    stored, written = task.stored, task.stored.written
    parts = [index.read(part) for part in stored.parts(task.name)]
    digest = digest_of(*parts)
    if written is not stored:
        parts = [stored.values(parts)]
    return _removed(index, task, written, parts, digest), dict(zip(written.parts(task.name), parts, strict=True))


def unpacked(index: ShardIndex, name: str, stored: StoredFormat) -> dict[str, Tensor]:
    """A tensor that isn't edited as it is once it leaves its format."""
    return {name: stored.values([index.read(part) for part in stored.parts(name)])}


def _removed(index: ShardIndex, task: EditTask, written: InPlace, parts: list[Tensor], digest: str) -> Before:
    """Edit a tensor in place, in float32, in bands of columns if its format asks for them. Returns its state before the edit."""
    bands: list[tuple[float, float, float]] = []

    def change(wide: Tensor) -> None:
        found = _checked(read_component(wide, task.removal, task.axis, task.keep_norms), index, task.name)
        remove(wide, task.removal, task.strength, task.axis, found)
        bands.append((found.along, aim(found, task), found.size))

    cost = written.rewrite(parts, change, task.removal.q, f"{index.folder}: {task.name}")
    along, left, size = (math.hypot(*values) for values in zip(*bands, strict=True))
    return Before(along, left, size, digest, cost.stored if cost else None, cost.nearest if cost else None)


def _checked(found: Readings, index: ShardIndex, name: str) -> Readings:
    if not found.finite:
        raise InputError(f"{index.folder}: {name} holds NaN or infinite values; the checkpoint is damaged")
    return found


def aim(found: Readings, task: EditTask) -> float:
    """The component that exact arithmetic leaves: (1 - strength) times the old one, rescaled with its column if norms are kept."""
    left = (1 - task.strength) * found.component
    if found.columns is not None:
        left = left * found.restoring(task.removal, task.strength)[:, None, :]
    return float(left.norm())


def digest_of(*tensors: Tensor) -> str:
    """BLAKE3 of a tensor's bytes as stored, followed by the bytes of its scales if it has any."""
    digest = blake3()
    for tensor in tensors:
        digest.update(bytes_of(tensor))
    return str(digest.hexdigest())


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes as stored, without a copy."""
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
