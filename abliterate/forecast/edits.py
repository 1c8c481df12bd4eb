"""What an edit would change in a checkpoint, from names and shapes: how many tensors of each kind, what is not edited, and why."""

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
    """``kinds``: number of edited writers in the blocks, by kind. ``shared``: the same for writers outside the blocks (the token embedding
    and similar), which are edited if one direction serves all blocks. ``nbytes``, ``numbers``: bytes and elements of all of them;
    ``largest``: bytes of the two largest together.

    ``embedding``, ``left``, ``format``: in words, what happens to the embedding, to the tensors that are not edited, and to quantised
    writers. ``growth``: bytes by which the checkpoint grows. ``unpacked``: modules converted from MXFP4. ``adapter``: bytes of a LoRA
    adapter (None: it can't make this edit).
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
    """The edits at full strength in every block. Raises InputError if the checkpoint does not match the layout."""
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
    """A writer's number of elements, and its bytes in the new checkpoint."""
    if writer.form == "mxfp4":
        numbers = 2 * math.prod(index.tensors[writer.name + BLOCKS].shape)
        return numbers, numbers * _BF16
    scales = index.tensors.get(writer.name + SCALES)
    info = index.tensors[writer.name]
    return math.prod(info.shape), info.nbytes + (scales.nbytes if scales is not None else 0)


def _shared(index: ShardIndex, folder: ModelFolder, config: EditConfig) -> tuple[dict[str, WriterKind], str]:
    """The writers outside the blocks that may be edited, and, in words, what happens to the token embedding."""
    if config.embedding == "skip":
        return {}, "not edited (--embedding skip)"
    if config.embedding == "auto" and folder.tied:
        return {}, "not edited: it shares its weights with the unembedding (--embedding untie edits it and keeps the unembedding)"
    try:
        found = {name: kind for name, (kind, _) in shared_writers(index, folder).items()}
    except InputError:
        if config.embedding != "auto" or folder.layout.embedding_norm is None:
            raise
        return {}, "not edited: a norm follows it (this model needs --embedding skip)"
    kept = ", and the unembedding keeps its weights" if config.embedding == "untie" and folder.tied else ""
    return found, f"edited if one direction serves all blocks{kept}; else not edited"


def _left(index: ShardIndex, folder: ModelFolder, edited: int) -> str:
    """The tensors that are copied unchanged, in words."""
    others = sum(not name.endswith((SCALES, EXPONENTS)) for name in index.tensors) - edited
    seeing = sum(text_name(name) is None for name in index.tensors)
    vision = f"; {seeing} of them are not part of the text model" if seeing else ""
    return f"{others} other tensors, which do not write into the residual stream (input projections, norms, routers){vision}"


def _format(writers: list[WriterTensor], unpacked: int) -> str | None:
    forms = Counter(writer.form for writer in writers)
    if unpacked:
        return f"the experts of {unpacked} modules are converted from MXFP4 to bf16"
    if forms["fp8"]:
        return f"{forms['fp8']} of the edited tensors are FP8 and stay FP8, rounded so that the direction does not come back"
    return None


def _growth(index: ShardIndex, unpacked: set[str]) -> int:
    """Bytes by which the checkpoint grows: all packed tensors of a module become bf16."""
    grown = 0
    for name, info in index.tensors.items():
        module, _, last = name.rpartition(".")
        if module in unpacked and last.endswith(BLOCKS):
            grown += 2 * math.prod(info.shape) * _BF16 - info.nbytes
        elif module in unpacked and last.endswith(EXPONENTS):
            grown -= info.nbytes
    return grown


def _adapter(index: ShardIndex, folder: ModelFolder, kinds: Mapping[str, WriterKind]) -> int | None:
    """Bytes of a LoRA adapter that makes the edit; None if no adapter can."""
    try:
        check_adaptable(index, folder, whole_edit(folder.layers, folder.d_model), kinds)
    except InputError:
        return None
    return sum(4 * sum(index.tensors[name].shape) for name in kinds)
