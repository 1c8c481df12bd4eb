"""What an edit of a checkpoint would change, from names and shapes: how many tensors of which kind, what is left alone, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from abliterate.checkpoint.adapter import check_adaptable
from abliterate.checkpoint.tasks import BLOCKS, EXPONENTS, SCALES, WriterKind, WriterTensor, placed_writers, shared_writers
from abliterate.config import EditConfig
from abliterate.errors import InputError
from abliterate.model.edit import whole_edit
from abliterate.model.folder import ModelFolder
from abliterate.model.index import ShardIndex
from abliterate.model.tensor_names import text_name

_BF16 = 2


@dataclass(frozen=True)
class Edits:
    """``kinds``: how many writers of each kind are edited; with ``shared`` ones, the token embedding and what goes with it, where
    one direction serves all blocks. ``nbytes`` and ``numbers`` are those of all of them, ``largest`` the bytes of the two largest.

    ``embedding`` and ``left`` say in words what becomes of the embedding, and what is left alone; ``format`` what becomes of quantised
    writers. The new checkpoint has ``growth`` bytes more, ``unpacked`` modules leave MXFP4, an adapter has ``adapter`` bytes (None: it
    can't make this edit).
    """

    kinds: Mapping[str, int]
    shared: Mapping[str, int]
    nbytes: int
    numbers: int
    largest: int
    embedding: str
    left: str
    format: str | None
    growth: int
    unpacked: int
    adapter: int | None

    @property
    def tensors(self) -> int:
        return sum(self.kinds.values())


def edits_of(index: ShardIndex, folder: ModelFolder, config: EditConfig) -> Edits:
    """At full strength, of every block. Raises InputError where the checkpoint and the layout don't fit."""
    writers = placed_writers(index, folder)
    shared, embedding = _shared(index, folder, config)
    kinds: dict[str, WriterKind] = {w.name: "mtp" if w.mtp else w.writer.component for w in writers}
    sizes = {w.name: _size(index, w) for w in writers}
    sizes |= {name: (math.prod(index.tensors[name].shape), index.tensors[name].nbytes) for name in shared}
    unpacked = {w.name.rpartition(".")[0] for w in writers if w.form == "mxfp4"}
    return Edits(
        kinds=dict(Counter(kinds.values())),
        shared=dict(Counter(shared.values())),
        nbytes=sum(nbytes for _, nbytes in sizes.values()),
        numbers=sum(numbers for numbers, _ in sizes.values()),
        largest=sum(sorted(nbytes for _, nbytes in sizes.values())[-2:]),
        embedding=embedding,
        left=_left(index, folder, len(sizes)),
        format=_format(writers, len(unpacked)),
        growth=_growth(index, unpacked),
        unpacked=len(unpacked),
        adapter=_adapter(index, folder, kinds),
    )


def _size(index: ShardIndex, writer: WriterTensor) -> tuple[int, int]:
    """A writer's numbers, and its bytes in the new checkpoint."""
    if writer.form == "mxfp4":
        numbers = 2 * math.prod(index.tensors[writer.name + BLOCKS].shape)
        return numbers, numbers * _BF16
    scales = index.tensors.get(writer.name + SCALES)
    info = index.tensors[writer.name]
    return math.prod(info.shape), info.nbytes + (scales.nbytes if scales is not None else 0)


def _shared(index: ShardIndex, folder: ModelFolder, config: EditConfig) -> tuple[dict[str, WriterKind], str]:
    """The writers outside the blocks that may be edited, and what becomes of the token embedding."""
    if config.embedding == "skip":
        return {}, "left alone (--embedding skip)"
    if config.embedding == "auto" and folder.tied:
        return {}, "left alone: it is tied to the unembedding (--embedding untie edits it and keeps the unembedding)"
    try:
        found = {name: kind for name, (kind, _) in shared_writers(index, folder).items()}
    except InputError:
        if config.embedding != "auto" or folder.layout.embedding_norm is None:
            raise
        return {}, "left alone: a norm stands behind it (--embedding skip is needed)"
    kept = ", and the unembedding keeps its weights" if config.embedding == "untie" and folder.tied else ""
    return found, f"edited too where one direction serves all blocks{kept}; else left alone"


def _left(index: ShardIndex, folder: ModelFolder, edited: int) -> str:
    """What is copied as it is."""
    others = sum(not name.endswith((SCALES, EXPONENTS)) for name in index.tensors) - edited
    seeing = sum(text_name(name) is None for name in index.tensors)
    vision = f"; {seeing} of them belong to what is not text" if seeing else ""
    return f"{others} other tensors, which read the stream, normalise or choose and write nothing into it{vision}"


def _format(writers: list[WriterTensor], unpacked: int) -> str | None:
    forms = Counter(writer.form for writer in writers)
    if unpacked:
        return f"the experts of {unpacked} modules leave MXFP4 for bf16"
    if forms["fp8"]:
        return f"{forms['fp8']} of the writers are FP8 and stay so, rounded so that the direction doesn't come back"
    return None


def _growth(index: ShardIndex, unpacked: set[str]) -> int:
    """Bytes that the new checkpoint has more: all packed tensors of a module become bf16."""
    grown = 0
    for name, info in index.tensors.items():
        module, _, last = name.rpartition(".")
        if module in unpacked and last.endswith(BLOCKS):
            grown += 2 * math.prod(info.shape) * _BF16 - info.nbytes
        elif module in unpacked and last.endswith(EXPONENTS):
            grown -= info.nbytes
    return grown


def _adapter(index: ShardIndex, folder: ModelFolder, kinds: Mapping[str, WriterKind]) -> int | None:
    """Bytes of an adapter that makes the edit, None where none can."""
    try:
        check_adaptable(index, folder, whole_edit(folder.layers, folder.d_model), kinds)
    except InputError:
        return None
    return sum(4 * sum(index.tensors[name].shape) for name in kinds)
