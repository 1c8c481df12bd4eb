"""What an edit would change in a checkpoint, from names and shapes: how many tensors of each kind, what is not edited, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from abliterate.checkpoint.formats import checkpoint
from abliterate.checkpoint.formats.format import WholeEdit
from abliterate.checkpoint.formats.table import sizes
from abliterate.checkpoint.tasks import BLOCKS, EXPONENTS, SCALES, WriterKind, WriterTensor, placed_writers, shared_writers
from abliterate.config import EditConfig
from abliterate.errors import InputError
from abliterate.model.folder import ModelFolder
from abliterate.model.index import ShardIndex
from abliterate.model.tensor_names import text_name


@dataclass(frozen=True)
class Edits:
    """``kinds``: number of edited writers in the blocks, by kind. ``shared``: the same for writers outside the blocks (the token embedding
    and similar), which are edited if one direction serves all blocks. ``nbytes``, ``numbers``: bytes and elements of all of them;
    ``largest``: bytes of the two largest together.

    ``embedding``, ``left``, ``format``: in words, what happens to the embedding, to the tensors that are not edited, and to quantised
    writers. ``growth``: bytes by which the checkpoint grows. ``unpacked``: modules converted from MXFP4. ``outputs``: by output format, the
    bytes that ``edit`` writes (None: the format can't hold this edit).
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
    outputs: Mapping[str, int | None]

    @property
    def tensors(self) -> int:
        return sum(self.kinds.values())

    @property
    def written(self) -> int:
        """The bytes of the new checkpoint."""
        found = self.outputs["checkpoint"]
        assert found is not None
        return found


def edits_of(index: ShardIndex, folder: ModelFolder, stored: int, config: EditConfig) -> Edits:
    """The edits at full strength in every block; ``stored``: bytes of the weights. Raises InputError if the checkpoint does not match the
    layout."""
    edit = WholeEdit(folder, index, placed_writers(index, folder), stored)
    shared, embedding = _shared(index, folder, config)
    parts = {w.name: _size(index, w) for w in edit.writers}
    parts |= {name: (math.prod(index.tensors[name].shape), index.tensors[name].nbytes) for name in shared}
    unpacked = {w.name.rpartition(".")[0] for w in edit.writers if w.form == "mxfp4"}
    return Edits(
        kinds=dict(Counter(edit.kinds.values())),
        shared=dict(Counter(shared.values())),
        nbytes=sum(nbytes for _, nbytes in parts.values()),
        numbers=sum(numbers for numbers, _ in parts.values()),
        largest=sum(sorted(nbytes for _, nbytes in parts.values())[-2:]),
        embedding=embedding,
        left=_left(index, folder, len(parts)),
        format=_format(edit.writers, len(unpacked)),
        growth=checkpoint.nbytes(edit) - stored,
        unpacked=len(unpacked),
        outputs=sizes(edit),
    )


def _size(index: ShardIndex, writer: WriterTensor) -> tuple[int, int]:
    """A writer's number of elements, and its bytes in the new checkpoint."""
    if writer.form == "mxfp4":
        numbers = 2 * math.prod(index.tensors[writer.name + BLOCKS].shape)
        return numbers, numbers * checkpoint.BF16
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


def _format(writers: Sequence[WriterTensor], unpacked: int) -> str | None:
    forms = Counter(writer.form for writer in writers)
    if unpacked:
        return f"the experts of {unpacked} modules are converted from MXFP4 to bf16"
    if forms["fp8"]:
        return f"{forms['fp8']} of the edited tensors are FP8 and stay FP8, rounded so that the direction does not come back"
    return None
