"""Index a safetensors checkpoint from its headers alone; single-file and sharded models look the same.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data
(https://github.com/huggingface/safetensors). A checkpoint is untrusted input: everything is checked before use.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abliterate.errors import InputError
from abliterate.files import Json
from abliterate.model.files import in_truth

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000  # bytes, the limit of the format
MAX_NAME = 1000  # characters of a tensor's name
MAX_AXES = 64  # more than PyTorch allows
DTYPES: dict[str, tuple[torch.dtype | None, int]] = {
    "F64": (torch.float64, 8), "F32": (torch.float32, 4), "F16": (torch.float16, 2), "BF16": (torch.bfloat16, 2),
    "I64": (torch.int64, 8), "I32": (torch.int32, 4), "I16": (torch.int16, 2), "I8": (torch.int8, 1),
    "U8": (torch.uint8, 1), "BOOL": (torch.bool, 1), "F8_E4M3": (torch.float8_e4m3fn, 1),
    "F8_E5M2": (torch.float8_e5m2, 1), "F8_E8M0": (torch.float8_e8m0fnu, 1), "U64": (None, 8), "U32": (None, 4), "U16": (None, 2),
}  # fmt: skip
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_PIECE = 1 << 24  # bytes compared at once
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is stored: bytes [start, end) of its shard file."""

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class ShardIndex:
    """All tensors of a checkpoint folder by name, each shard file's size in bytes, and stamps that show whether a shard was changed."""

    folder: Path
    tensors: dict[str, TensorInfo]
    shards: dict[str, int]
    stamps: dict[str, Stamp]

    @property
    def nbytes(self) -> int:
        return sum(self.shards.values())

    def in_shard(self, shard: str) -> list[TensorInfo]:
        """The tensors of a shard in byte order."""
        return sorted((t for t in self.tensors.values() if t.shard == shard), key=lambda t: t.start)

    def read(self, name: str, into: Tensor | None = None) -> Tensor:
        """Read one tensor from disk in its stored type; ``into`` is a uint8 buffer of exactly its size to read into.

        Raises InputError if it is missing or truncated.
        """
        info = self.tensors.get(name)
        if info is None:
            raise InputError(f"{self.folder}: the checkpoint has no tensor {name}")
        dtype = DTYPES[info.dtype][0]
        if dtype is None:
            raise InputError(f"{self.folder / info.shard}: {name} is stored as {info.dtype}, which can't be read here")
        data = torch.empty(info.nbytes, dtype=torch.uint8) if into is None else into
        if info.nbytes:
            with reading(self.folder / info.shard), (self.folder / info.shard).open("rb", buffering=0) as file:
                file.seek(info.start)
                _read_whole(file, memoryview(data.numpy().data), self.folder / info.shard, name)
        return data.view(dtype).view(info.shape)

    def read_rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Read some rows of a matrix from disk, in ascending order and in its stored type; the others are not read.

        Raises InputError as ``read`` does, and if it isn't a matrix with these rows.
        """
        info = self.tensors.get(name)
        dtype = DTYPES[info.dtype][0] if info is not None else None
        if info is None or dtype is None or len(info.shape) != 2 or (rows and not 0 <= rows[0] <= rows[-1] < info.shape[0]):
            raise InputError(f"{self.folder}: the checkpoint has no matrix {name} with the requested rows")
        width = info.shape[1] * dtype.itemsize
        data = bytearray(len(rows) * width)
        into = memoryview(data)
        with reading(self.folder / info.shard), (self.folder / info.shard).open("rb") as file:
            done = 0
            while done < len(rows):
                run = done + 1
                while run < len(rows) and rows[run] == rows[run - 1] + 1:  # neighbours in one read
                    run += 1
                file.seek(info.start + rows[done] * width)
                _read_whole(file, into[done * width : run * width], self.folder / info.shard, name)
                done = run
        if not data:
            return torch.empty((len(rows), info.shape[1]), dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).view(len(rows), info.shape[1])


def _read_whole(file: Any, into: memoryview, path: Path, name: str) -> None:
    """Fill ``into`` with several reads, since one reads at most 2 GiB. Raises InputError if the file ends too early."""
    done = 0
    while done < len(into):
        count = file.readinto(into[done:])
        if not count:
            raise InputError(f"{path}: ends inside {name}; the file is truncated")
        done += count


def open_index(folder: Path) -> ShardIndex:
    """Read the headers of a checkpoint folder. Raises InputError naming the file and what is wrong with it."""
    with reading(folder):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such model folder")
        _no_way_out(folder)
        return _opened(folder)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError while ``path`` is read (a bad sector, a deleted file) into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename or path}: can't be read ({error.strerror or error})") from None


def stamp(path: Path) -> Stamp:
    """What changes when a file is changed: its size, time of change and inode."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def first_difference(source: ShardIndex, old: TensorInfo, index: ShardIndex, new: TensorInfo) -> int | None:
    """The first byte in which two stored tensors of equal size differ; None if they are identical."""
    with (source.folder / old.shard).open("rb") as a, (index.folder / new.shard).open("rb") as b:
        a.seek(old.start)
        b.seek(new.start)
        for at in range(0, old.nbytes, _PIECE):
            count = min(_PIECE, old.nbytes - at)
            left, right = a.read(count), b.read(count)
            if left != right:
                return at + next((i for i, (x, y) in enumerate(zip(left, right, strict=False)) if x != y), min(len(left), len(right)))
    return None


def _no_way_out(folder: Path) -> None:
    """Raise InputError for a link that leaves the folder: it could copy any file of this machine into the edited checkpoint.

    The Hub's cache is allowed: the files of ``snapshots/REVISION`` are links into ``blobs`` beside ``snapshots``.
    """
    real = folder.resolve()
    allowed = {real, real.parent.parent / "blobs"} if real.parent.name == "snapshots" else {real}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and path.is_file() and allowed.isdisjoint(path.resolve().parents):
            raise InputError(f"{path}: is a link out of the model's folder, to {path.resolve()}; replace it with the file itself")


def _opened(folder: Path) -> ShardIndex:
    names, promised = shard_names(folder)
    tensors: dict[str, TensorInfo] = {}
    stamps: dict[str, Stamp] = {}
    for shard in names:
        path = folder / shard
        if not path.is_file():
            raise InputError(f"{path}: the index names this shard but it is missing; download it again")
        stamps[shard] = stamp(path)
        for info in read_header(path):
            if info.name in tensors:
                raise InputError(f"{path}: {info.name!r} is in {tensors[info.name].shard} too")
            tensors[info.name] = info
    if lost := sorted(name for name, shard in promised.items() if name not in tensors or tensors[name].shard != shard):
        raise InputError(f"{folder / INDEX}: says that {lost[0]!r} is in {promised[lost[0]]}, but it isn't; download the checkpoint again")
    return ShardIndex(folder, tensors, {shard: size for shard, (size, _, _) in stamps.items()}, stamps)


def shard_names(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The shard files, and the shard that the index names for each tensor.

    Raises InputError if the folder has no shards or its index is damaged.
    """
    index = folder / INDEX
    if index.is_file() and (folder / SINGLE).is_file():
        raise InputError(f"{folder}: holds {SINGLE} and {INDEX}; remove the one that is not the model")
    if not index.is_file():
        if (folder / SINGLE).is_file():
            return [SINGLE], {}
        if any(next(folder.glob(pattern), None) for pattern in _PICKLES):
            raise InputError(
                f"{folder}: the weights are pickle files; only safetensors are read (pickles can run code): convert them first"
            )
        raise InputError(f"{folder}: holds neither {SINGLE} nor {INDEX}")
    if index.stat().st_size > MAX_HEADER:
        raise InputError(f"{index}: too large for a shard index; the file is damaged")
    try:
        weight_map: dict[str, str] = _json(index.read_bytes(), index)["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        instead = in_truth(index)
        raise InputError(f"{index}: not a shard index (JSON with a 'weight_map')" + (f" but {instead}" if instead else "")) from None
    for name in names:
        if not _is_file_name(name) or not name.endswith(".safetensors"):
            raise InputError(f"{index}: names the shard {str(name)[:80]!r}; shards must be .safetensors files beside it")
    return names, weight_map


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable() and len(name.encode()) < 256 and Path(name).name == name


def _json(text: bytes, path: Path) -> Any:
    """Parse JSON without duplicate names, since readers differ in which one they take. Raises ValueError, RecursionError, InputError."""

    def table(pairs: list[tuple[str, Any]]) -> Json:
        made = dict(pairs)
        if len(made) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise InputError(f"{path}: {twice[:80]!r} is in it twice; the file is damaged")
        return made

    return json.loads(text.decode(), object_pairs_hook=table)


def read_header(path: Path) -> list[TensorInfo]:
    """The tensors of one file. Raises InputError for a malformed header, bad offsets or a truncated file."""
    with reading(path), path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > MAX_HEADER or 8 + length > size:
            raise InputError(f"{path}: {in_truth(path) or 'not a safetensors file, or its header is cut short (truncated download?)'}")
        try:
            header = _json(file.read(length), path)
            entries = [(n, e) for n, e in header.items() if n != "__metadata__"]
            metadata = (header.get("__metadata__") or {}).values()
        except (ValueError, AttributeError, RecursionError):
            raise InputError(f"{path}: the header is not JSON; the file is damaged") from None
    if not all(isinstance(value, str) for value in metadata):
        raise InputError(f"{path}: the header's metadata hold something other than text; the file is damaged")
    infos = sorted((_entry(path, name, entry, 8 + length) for name, entry in entries), key=lambda t: (t.start, t.end))
    position = 8 + length
    for info in infos:
        if info.start != position:
            raise InputError(f"{path}: {info.name!r} starts at byte {info.start}, expected {position}; offsets overlap or leave gaps")
        position = info.end
    if position > size:
        raise InputError(f"{path}: truncated: it has {size} bytes, but its header describes {position}; download it again")
    if position < size:
        raise InputError(f"{path}: {size - position} bytes after the last tensor; the file is damaged")
    return infos


def _entry(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    if not name.isprintable() or len(name) > MAX_NAME:
        raise InputError(f"{path}: {name[:80]!r} is not a valid tensor name; the file is damaged")
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(n) is int and 0 <= n < 2**63 for n in (*shape, start, end)) and len(shape) <= MAX_AXES
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise InputError(f"{path}: the header's entry for {name!r} is malformed")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"{path}: {name!r} has the unknown type {str(dtype)[:80]!r}")
    if math.prod(n or 1 for n in shape) >= 2**62:
        raise InputError(f"{path}: {name!r} can't have the shape {list(shape)}")
    if end - start != math.prod(shape) * DTYPES[dtype][1]:
        raise InputError(
            f"{path}: {name!r} has {end - start} bytes, but its shape {list(shape)} of {dtype} needs {math.prod(shape) * DTYPES[dtype][1]}"
        )
    return TensorInfo(name, path.name, dtype, shape, data_start + start, data_start + end)
