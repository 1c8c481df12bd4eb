"""What an edit would change in a checkpoint, from names and shapes: how many tensors of each kind, what is not edited, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from abliterate.checkpoint.formats import checkpoint
from abliterate.checkpoint.formats.format import WholeEdit
from abliterate.checkpoint.formats.table import sizes
from abliterate.checkpoint.output import value_bytes
from abliterate.checkpoint.tasks import WriterKind, WriterTensor, placed_writers, shared_writers
from abliterate.config import EditConfig
from abliterate.errors import InputError
from abliterate.model.folder import ModelFolder
from abliterate.model.formats.format import StoredFormat
from abliterate.model.formats.plain import PLAIN
from abliterate.model.index import ShardIndex
from abliterate.model.tensor_names import text_name


@dataclass(frozen=True)
class Edits:
    """``kinds``: number of edited writers in the blocks, by kind. ``shared``: the same for writers outside the blocks (the token embedding
    and similar), which are edited if one direction serves all blocks. ``nbytes``, ``numbers``: bytes and elements of all of them;
    ``largest``: bytes that the two largest together hold while they are edited.

    ``embedding``, ``left``, ``format``: in words, what happens to the embedding, to the tensors that are not edited, and to quantised
    writers. ``growth``: bytes by which the checkpoint grows. ``unpacked``: modules that leave a quantised format. ``outputs``: by output
    format, the bytes that ``edit`` writes (None: the format can't hold this edit).
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
    held = [w.stored.written.held(*parts[w.name]) for w in edit.writers]
    parts |= {name: (math.prod(index.tensors[name].shape), index.tensors[name].nbytes) for name in shared}
    held += [PLAIN.held(*parts[name]) for name in shared]
    unpacked = edit.unpacked
    return Edits(
        kinds=dict(Counter(edit.kinds.values())),
        shared=dict(Counter(shared.values())),
        nbytes=sum(nbytes for _, nbytes in parts.values()),
        numbers=sum(numbers for numbers, _ in parts.values()),
        largest=sum(sorted(held)[-2:]),
        embedding=embedding,
        left=_left(index, folder, len(parts)),
        format=_format(edit.writers, unpacked),
        growth=checkpoint.nbytes(edit) - stored,
        unpacked=len(unpacked),
        outputs=sizes(edit),
    )


def _size(index: ShardIndex, writer: WriterTensor) -> tuple[int, int]:
    """A writer's number of elements, and its bytes in the new checkpoint."""
    parts = [index.tensors[name] for name in writer.stored.parts(writer.name)]
    numbers = math.prod(writer.stored.shape(parts[0].shape) or parts[0].shape)
    return numbers, value_bytes(parts[0], writer.stored) if writer.leaves_format else sum(part.nbytes for part in parts)


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
    others = sum(folder.stored.matrix_of_companion(name) is None for name in index.tensors) - edited
    seeing = sum(text_name(name) is None for name in index.tensors)
    vision = f"; {seeing} of them are not part of the text model" if seeing else ""
    return f"{others} other tensors, which do not write into the residual stream (input projections, norms, routers){vision}"


def _format(writers: Sequence[WriterTensor], unpacked: Mapping[str, StoredFormat]) -> str | None:
    for stored in unpacked.values():
        return f"the experts of {len(unpacked)} modules are converted from {stored.label} to bf16"
    for stored, count in Counter(writer.stored for writer in writers if writer.stored is not PLAIN).items():
        return f"{count} of the edited tensors are {stored.label} and stay {stored.label}, rounded so that the direction does not come back"
    return None
