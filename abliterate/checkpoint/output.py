"""Plan the files of the new checkpoint. Headers and offsets of the source are kept wherever no tensor changes size."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from abliterate.checkpoint.tasks import EditTask
from abliterate.errors import InputError
from abliterate.files import Json
from abliterate.model.formats.format import StoredFormat
from abliterate.model.index import DTYPES, INDEX, SINGLE, ShardIndex, TensorInfo, reading

_ALIGN = 8
_BLOCK = 4096  # block size of a file system; tensors moved by whole blocks can still share unchanged bytes between files
UNTIED_SHARD = "model-untied-head.safetensors"


@dataclass(frozen=True)
class NewShard:
    """A file to write: the bytes of its header, and its tensors in the order of their bytes. ``same_header``: it has the same tensors as
    the source's file. ``marked``: how many bytes provenance adds to the header."""

    name: str
    header: bytes
    tensors: tuple[TensorInfo, ...]
    same_header: bool
    marked: int = 0

    @property
    def nbytes(self) -> int:
        return self.tensors[-1].end if self.tensors else len(self.header)


@dataclass(frozen=True)
class Output:
    """The new checkpoint's files. ``unpacked``: modules whose matrices leave a format that an edit can't be stored in, and the format.
    ``untied``: the embedding, and the unembedding that gets a copy of its old weights."""

    shards: tuple[NewShard, ...]
    unpacked: Mapping[str, StoredFormat]
    untied: tuple[str, str] | None

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        return {info.name: info for shard in self.shards for info in shard.tensors}

    @property
    def nbytes(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    def leaves(self, name: str, index: ShardIndex) -> StoredFormat | None:
        """The format in ``index``, the old checkpoint, that a tensor of the new one leaves; None if it keeps its format."""
        stored = self.unpacked.get(module_of(name))
        return stored if stored is not None and name not in index.tensors and stored.parts(name)[0] in index.tensors else None


def module_of(name: str) -> str:
    """The module that a tensor belongs to."""
    return name.rpartition(".")[0]


def value_bytes(info: TensorInfo, stored: StoredFormat) -> int:
    """The bytes of a matrix's values once it leaves its format, from its main tensor."""
    return math.prod(stored.shape(info.shape) or info.shape) * DTYPES[stored.value_type(info.dtype)][1]


def plan_output(index: ShardIndex, tasks: Mapping[str, EditTask], untied: tuple[str, str] | None = None) -> Output:
    """The files that an edit writes.

    Of a module with a matrix that leaves its format, all matrices leave it (gate_up and down of experts in MXFP4), because they share one
    setting in the config. Raises InputError if the checkpoint already has a file or tensor with the name of a new one.
    """
    unpacked = {module_of(name): task.stored for name, task in tasks.items() if task.stored.written is not task.stored}
    shards = [shard for name in index.shards if (shard := _shard(index, name, unpacked)).tensors or shard.same_header]
    if untied is not None:
        if UNTIED_SHARD in index.shards:
            raise InputError(f"{index.folder / UNTIED_SHARD}: exists already though the embeddings are tied; use --embedding edit or skip")
        head = replace(index.tensors[untied[0]], name=untied[1])
        if [shard.name for shard in shards] == [SINGLE]:  # loaders of a single file read no other file
            shards = [_laid_out(SINGLE, [*shards[0].tensors, head], metadata_of(index.folder / SINGLE))]
        else:
            shards.append(_laid_out(UNTIED_SHARD, [head], {"format": "pt"}))
    return Output(tuple(shards), unpacked, untied)


def marked(output: Output, edited: Collection[str], provenance: Mapping[str, str]) -> Output:
    """Add ``provenance`` to the header metadata of files with an ``edited`` tensor. Other files stay unchanged."""
    shards = (shard if all(i.name not in edited for i in shard.tensors) else _marked(shard, provenance) for shard in output.shards)
    return replace(output, shards=tuple(shards))


def _marked(shard: NewShard, provenance: Mapping[str, str]) -> NewShard:
    """Add provenance to a header. Tensors move by whole blocks, so that file systems can still share their bytes between files."""
    end = 8 + int.from_bytes(shard.header[:8], "little")
    header = json.loads(shard.header[8:end])
    metadata = {"format": "pt", **(header.pop("__metadata__", None) or {}), **provenance}
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
    text += b" " * ((end - 8 - len(text)) % _BLOCK)
    more = 8 + len(text) - end
    tensors = tuple(replace(info, start=info.start + more, end=info.end + more) for info in shard.tensors)
    return replace(shard, header=len(text).to_bytes(8, "little") + text + shard.header[end:], tensors=tensors, marked=more)


def _shard(index: ShardIndex, shard: str, unpacked: Mapping[str, StoredFormat]) -> NewShard:
    old = index.in_shard(shard)
    new = [info for old_info in old for info in _renewed(index, old_info, unpacked)]
    if [(i.name, i.dtype, i.shape) for i in new] == [(i.name, i.dtype, i.shape) for i in old]:
        start = old[0].start if old else index.shards[shard]
        with reading(index.folder / shard), (index.folder / shard).open("rb") as file:
            return NewShard(shard, file.read(start), tuple(old), True)
    return _laid_out(shard, new, metadata_of(index.folder / shard))


def _renewed(index: ShardIndex, info: TensorInfo, unpacked: Mapping[str, StoredFormat]) -> list[TensorInfo]:
    """The tensors that replace ``info`` in the new checkpoint: in an unpacked module, a matrix's main tensor becomes the matrix, and its
    companions go."""
    stored = unpacked.get(module_of(info.name))
    if stored is None:
        return [info]
    if stored.matrix_of_companion(info.name) is not None:
        return []
    if not stored.holds(info):
        return [info]
    name, shape = stored.matrix(info.name), stored.shape(info.shape)
    if shape is None or name in index.tensors:
        raise InputError(f"{index.folder}: {info.name} has shape {list(info.shape)}, or {name} is stored too; the checkpoint is damaged")
    return [replace(info, name=name, dtype=stored.value_type(info.dtype), shape=shape)]


def _laid_out(shard: str, tensors: list[TensorInfo], metadata: dict[str, str]) -> NewShard:
    header: Json = {"__metadata__": metadata} if metadata else {}
    position, sizes = 0, []
    for info in tensors:
        size = DTYPES[info.dtype][1]
        for n in info.shape:
            size *= n
        header[info.name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [position, position + size]}
        sizes.append((position, position + size))
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    start = 8 + len(text)
    placed = tuple(replace(i, shard=shard, start=start + a, end=start + b) for i, (a, b) in zip(tensors, sizes, strict=True))
    return NewShard(shard, len(text).to_bytes(8, "little") + text, placed, False)


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata in a shard's header."""
    with reading(path), path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return dict(header.get("__metadata__") or {})


def new_index(index: ShardIndex, output: Output) -> bytes | None:
    """The content of the new ``model.safetensors.index.json``: the old bytes if all shards keep their tensors, None for a single file."""
    path = index.folder / INDEX
    if all(shard.same_header for shard in output.shards):
        return path.read_bytes() if path.is_file() else None
    if [shard.name for shard in output.shards] == [SINGLE]:
        return None
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    total = sum(info.nbytes for info in output.tensors.values())
    metadata = old.get("metadata")
    content = {"metadata": {**(metadata if isinstance(metadata, dict) else {}), "total_size": total}}
    content["weight_map"] = {info.name: info.shard for info in output.tensors.values()}
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def new_config(config: Json, output: Output, unties: bool = False) -> Json | None:
    """The new config.json; None if it stays unchanged. ``unties``: set tie_word_embeddings to false even if the edit itself unties nothing,
    because the checkpoint already stores two matrices."""
    changed = dict(config)
    if output.untied or unties:
        changed["tie_word_embeddings"] = False
        if isinstance(changed.get("text_config"), dict):
            changed["text_config"] = {**changed["text_config"], "tie_word_embeddings": False}
    if output.unpacked:
        settings = dict(changed.pop("quantization_config", {}))
        stored = next(iter(output.unpacked.values()))
        if any(stored.holds(info) for info in output.tensors.values()):
            kept = [*settings.get(stored.outside_key, ()), *output.unpacked]
            changed["quantization_config"] = {**settings, stored.outside_key: kept}
    return None if changed == dict(config) else changed
