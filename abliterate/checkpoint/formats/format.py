"""A format in which an edit is written: what a row of the table has to offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from abliterate.checkpoint.output import module_of
from abliterate.checkpoint.records import Proof
from abliterate.checkpoint.tasks import WriterKind, WriterTensor
from abliterate.config import VerifyConfig
from abliterate.model.edit import Edit
from abliterate.model.folder import ModelFolder
from abliterate.model.formats.format import StoredFormat
from abliterate.model.index import ShardIndex


@dataclass(frozen=True)
class Job:
    """An edit to write into the new folder ``out``.

    ``base``, ``revision``: the base's name in cards and proofs, and its revision on the Hub. ``type``: what --as names after the format's
    name. ``card`` makes the README.md of a checkpoint from its proof.
    """

    folder: ModelFolder
    index: ShardIndex
    edit: Edit
    out: Path
    base: str
    revision: str | None
    type: str | None
    card: Callable[[Proof], str]


@dataclass(frozen=True)
class WholeEdit:
    """An edit at full strength in every block, of which only names and shapes are known. ``writers``: those in the blocks; ``stored``:
    bytes of the base's weights."""

    folder: ModelFolder
    index: ShardIndex
    writers: Sequence[WriterTensor]
    stored: int

    @property
    def kinds(self) -> Mapping[str, WriterKind]:
        """The kinds of the writers, by name."""
        return {w.name: "mtp" if w.mtp else w.writer.component for w in self.writers}

    @property
    def unpacked(self) -> Mapping[str, StoredFormat]:
        """The modules with a writer that leaves its stored format, each with that format."""
        return {module_of(w.name): w.stored for w in self.writers if w.leaves_format}


@dataclass(frozen=True)
class OutputFormat:
    """``write`` writes the edit, checks it and says in one line what was done. ``nbytes`` forecasts how many bytes it writes; None: the
    format can't hold such an edit. ``holds``: whether a path is an output in this format. ``verify`` derives the proof of an output again
    and says what was checked; None: an output holds no proof.

    ``write`` raises InputError if the format can't hold the edit. It and ``verify`` raise CheckError if a proof fails.
    """

    write: Callable[[Job], str]
    nbytes: Callable[[WholeEdit], int | None]
    holds: Callable[[Path], bool]
    verify: Callable[[VerifyConfig, Path], str] | None = None
