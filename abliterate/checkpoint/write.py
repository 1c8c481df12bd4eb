"""A new checkpoint folder from an old one: copied byte for byte but for the edited tensors, whole or not at all."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from abliterate.checkpoint.index import INDEX, ShardIndex, TensorInfo
from abliterate.checkpoint.orthogonalise import orthogonalise
from abliterate.checkpoint.tasks import EditTask
from abliterate.errors import InputError

_BLOCK = 1 << 24
# Not part of the derived checkpoint: other formats of the old weights, and the old card (a new one is written).
_LEFT_BEHIND = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack", ".safetensors")
_REPLACED = ("README.md", "abliteration.json", "pytorch_model.bin.index.json")


def check_destination(out: Path, source: Path) -> None:
    """Raises InputError where the new folder can't be: it holds something, or lies inside the source (or around it)."""
    if out.is_symlink() or out.resolve() == Path.cwd():
        raise InputError(f"{out}: is a link or the current folder; give a new folder's name")
    above = next((p for p in out.absolute().parents if p.exists()), None)
    if above is not None and not above.is_dir():
        raise InputError(f"{above}: is a file, so {out} can't be made; give another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: already there and not empty; give another --out (nothing is overwritten)")
    real, base = out.resolve(), source.resolve()
    if real == base or base in real.parents:
        raise InputError(f"{out}: lies inside the model's folder {source}; give an --out outside it")
    if real in base.parents:
        raise InputError(f"{out}: holds the model's folder {source}; give another --out")


@contextmanager
def new_folder(out: Path, needed_bytes: int) -> Iterator[Path]:
    """A hidden folder beside ``out`` that takes its name when the block ends well, and is gone when it doesn't.

    Raises InputError where the disk has too little space, before or on the way.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    free = shutil.disk_usage(out.parent).free
    if free < needed_bytes:
        raise InputError(
            f"{out.parent}: {free / 1e9:.2f} GB free, the checkpoint needs {needed_bytes / 1e9:.2f} GB; make room or give another --out"
        )
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        yield partial
        for path in sorted(partial.rglob("*")):
            _sync(path)
        _sync(partial)
        partial.chmod(0o755)
        partial.replace(out)
        _sync(out.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{out.parent}: no space left on the disk; nothing was kept, make room and run again") from None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Remove what a killed process left half-written."""
    for stale in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
        shutil.rmtree(stale, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_side_files(source: Path, out: Path) -> list[str]:
    """Copy tokenizer, config, licence and the like, byte for byte; returns their names."""
    copied = []
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        hidden = any(part.startswith(".") for part in name.parts)
        if not path.is_file() or hidden or path.suffix in _LEFT_BEHIND or str(name) in _REPLACED:
            continue
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / name)
        copied.append(str(name))
    return copied


def write_shards(index: ShardIndex, tasks: Mapping[str, EditTask], out: Path, advance: Callable[[int], None]) -> None:
    """Write every shard; types, shapes, names and order stay, so headers and untouched bytes are the source's own.

    Holds one edited tensor at a time. ``advance`` hears of bytes. Raises InputError for a tensor with NaN or Inf.
    """
    for shard in index.shards:
        with (index.folder / shard).open("rb") as reader, (out / shard).open("xb") as writer:
            position = 0
            for info in index.in_shard(shard):
                if info.name in tasks:
                    _copy(reader.fileno(), writer.fileno(), info.start - position, advance)
                    edited = edited_tensor(index, info, tasks[info.name])
                    _write_all(writer.fileno(), _bytes_of(edited))
                    advance(info.nbytes)
                    position = os.lseek(reader.fileno(), info.end, os.SEEK_SET)
            _copy(reader.fileno(), writer.fileno(), index.shards[shard] - position, advance)
    if (index.folder / INDEX).is_file() and not (out / INDEX).is_file():
        shutil.copyfile(index.folder / INDEX, out / INDEX)


def edited_tensor(index: ShardIndex, info: TensorInfo, task: EditTask) -> Tensor:
    """The new tensor in its stored type: edited in float32 or wider, rounded once."""
    stored = index.read(info.name)
    if not torch.isfinite(stored).all():
        raise InputError(f"{index.folder / info.shard}: {info.name} holds NaN or infinite values; the checkpoint is damaged")
    edited = orthogonalise(stored, task.rows, task.strength, task.axis).to(stored.dtype)
    if not torch.isfinite(edited).all():
        raise InputError(f"{index.folder / info.shard}: {info.name} leaves the range of {info.dtype} when edited")
    return edited


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]


def _copy(source: int, target: int, count: int, advance: Callable[[int], None]) -> None:
    while count:
        data = os.read(source, min(count, _BLOCK))
        if not data:
            raise InputError("a shard became shorter while it was read; run again on an unchanging folder")
        _write_all(target, memoryview(data))
        count -= len(data)
        advance(len(data))


def _write_all(target: int, data: memoryview) -> None:
    while data:
        data = data[os.write(target, data) :]
