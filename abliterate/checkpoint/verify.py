"""Verify the proof of an edited checkpoint from its saved bytes and, if available, its base."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from abliterate.checkpoint.edit import not_edited, to_untie, unties
from abliterate.checkpoint.licence import CARD, licence_files
from abliterate.checkpoint.names import PLAN, PROOF
from abliterate.checkpoint.orthogonalise import read_component
from abliterate.checkpoint.output import Output, metadata_of, module_of, new_config, plan_output
from abliterate.checkpoint.proof import FLOOR, stored_parts, values
from abliterate.checkpoint.provenance import PLAN_KEY, edit_digest
from abliterate.checkpoint.records import PROOF_SCHEMA, EmbeddingRecord, Proof, TensorProof, Worst
from abliterate.checkpoint.selfcheck import self_check
from abliterate.checkpoint.stream import companions, digest_of, edited, unpacked
from abliterate.checkpoint.sums import check_sums
from abliterate.checkpoint.tasks import EditTask, edit_tasks
from abliterate.checkpoint.write import same_side_files
from abliterate.errors import CheckError, InputError
from abliterate.files import Record
from abliterate.model.agreement import check_agreement
from abliterate.model.edit import Edit, load_edit
from abliterate.model.files import everything
from abliterate.model.folder import ModelFolder
from abliterate.model.index import ShardIndex, TensorInfo, first_difference, open_index
from abliterate.model.source import check_no_adapter

T = TypeVar("T")
_PIECE = 1 << 24
_SAME = 1e-5  # relative tolerance for sums of the same numbers in another order
_LOADED = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")  # side files that can change what a model or tokenizer does


def steps(folder: ModelFolder, with_base: bool) -> int:
    """How many tensors ``verify`` will check. Raises the same errors."""
    proof, _ = _stated(folder.path)
    return len(proof.tensors) + (len(_opened(folder).tensors) if with_base else 0)


def verify(folder: ModelFolder, base: ModelFolder | None, advance: Callable[[int], None] = lambda done: None) -> tuple[int, int]:
    """Check ``folder`` against its proof. Returns how many tensors were measured, and how many were compared with the base.

    Every tensor that the edit changes must be listed in the proof, its bytes must match the listed hash, and its component along the
    direction must be what the strength leaves. With ``base``, every edited tensor must be the result of editing the base's tensor, and
    everything else must equal the base byte for byte. If there is a SHA256SUMS, every file must match it, except the card and the licence
    files, which people change. Raises InputError if there is no proof, and CheckError with the first difference.
    """
    proof, edit = _stated(folder.path)
    index = _opened(folder)
    if {folder.says_tied, folder.tied} != {proof.embedding.tied_to_unembedding}:
        raise CheckError(f"{folder.path / 'config.json'}: tie_word_embeddings is {folder.says_tied}, which contradicts {PROOF}")
    try:  # here a bad checkpoint is a failed check, not bad input
        tasks = edit_tasks(index, folder, edit)
        self_check(folder, index)
        check_agreement(folder, index)
    except InputError as error:
        raise CheckError(str(error)) from None
    listed = {entry.name: entry for entry in proof.tensors}
    _described(folder, edit, proof, listed, tasks, not_edited(index, folder, tasks))
    for name, task in tasks.items():
        _measured(index, task, listed[name])
        advance(1)
    _signed(index, edit, tasks)
    compared = _compared(index, folder, edit, proof, listed, base, advance) if base is not None else 0
    _plain(folder)
    check_sums(folder.path, but=(CARD, *licence_files(folder.path)))
    return len(tasks), compared


def _plain(folder: ModelFolder) -> None:
    """Raises CheckError if there is an adapter beside the weights, because it would change what they compute."""
    try:
        check_no_adapter(folder.path)
    except InputError as error:
        raise CheckError(str(error)) from None


def _stated(path: Path) -> tuple[Proof, Edit]:
    """The proof and the edit that it proves."""
    try:
        proof = Proof.read(path / PROOF)
    except (OSError, InputError):
        raise InputError(
            f"{path}: no {PROOF} of schema {PROOF_SCHEMA} in it; verify only checks checkpoints that abliterate edited"
        ) from None
    return proof, load_edit(path / PLAN)


def _opened(folder: ModelFolder) -> ShardIndex:
    try:
        return open_index(folder.path)
    except InputError as error:
        raise CheckError(str(error)) from None


def _described(
    folder: ModelFolder, edit: Edit, proof: Proof, listed: Mapping[str, TensorProof], tasks: Iterable[str], skipped: Sequence[str]
) -> None:
    """Check everything in the proof except the figures of tensors. Raises CheckError."""
    if different := sorted(set(tasks) ^ set(listed)):
        where = "lists it but the edit doesn't change it" if different[0] in listed else "doesn't list it"
        raise CheckError(f"{folder.path}: {different[0]}: {PROOF} {where}")
    if len(listed) != len(proof.tensors):
        raise CheckError(f"{folder.path}: {PROOF} lists a tensor twice")
    _equal(folder, "embedding", proof.embedding, EmbeddingRecord(policy=edit.embedding, tied_to_unembedding=folder.tied))
    _equal(folder, "norms", proof.norms, edit.norms)
    _equal(folder, "not_edited", list(proof.not_edited), list(skipped))
    _equal(folder, "worst", proof.worst, Worst.of(listed.values()))


def _equal(folder: ModelFolder, what: str, said: T, found: T) -> None:
    """Raises CheckError if what the proof says is not what was found."""
    if said != found:
        shown, fact = (each.document() if isinstance(each, Record) else each for each in (said, found))
        raise CheckError(f"{folder.path}: {PROOF} says {what} is {shown}, but it is {fact}")


def allowed(tolerance: float, size: float, before: float) -> float:
    """How far a component may be from its aim, for a tensor whose norm is ``size`` now and whose component was ``before`` before the edit.

    Never less than the proof allowed, which uses the norm before the edit. That norm is at most hypot(``size``, ``before``), because the
    removed part is orthogonal to the rest.
    """
    return max(tolerance * math.hypot(size, before), FLOOR)


def _measured(index: ShardIndex, task: EditTask, entry: TensorProof) -> None:
    """Check one edited tensor against its entry in the proof. Raises CheckError."""
    name, info = task.name, index.tensors.get(task.name)
    if info is None:
        raise CheckError(f"{index.folder}: {name} is still packed as {task.stored.label}, the proof says {entry.dtype}")
    facts = (
        ("dtype", info.dtype, entry.dtype),
        ("shape", list(info.shape), list(entry.shape)),
        ("kind", task.kind, entry.kind),
        ("strength", task.strength, entry.strength),
    )
    if wrong := [f"{what} is {fact}, the proof says {said}" for what, fact, said in facts if fact != said]:
        raise CheckError(f"{index.folder}: {name}: {wrong[0]}")
    stored = stored_parts(index, task)
    if digest_of(*stored) != entry.blake3_after:
        raise CheckError(f"{index.folder}: the bytes of {name} don't match the proof (BLAKE3 differs)")
    found = read_component(values(task, stored), task.removal, task.axis)
    limit = allowed(task.stored.written.tolerance(info.dtype), found.size, entry.before)
    if not abs(found.along - entry.after) <= max(_SAME * found.size, 1e-12):
        raise CheckError(f"{index.folder}: {name} holds {found.along:.3e} of the direction, the proof says {entry.after:.3e}")
    if not abs(found.along - entry.aim) <= limit:
        raise CheckError(f"{index.folder}: {name} holds {found.along:.3e} of the direction, its strength should leave {entry.aim:.3e}")
    _near(index, f"{name}: left", entry.left, entry.after / entry.before if entry.before else 0.0, 0.0)
    if not task.keep_norms:
        _near(index, f"{name}: aim", entry.aim, (1 - task.strength) * entry.before, _SAME * found.size)


def _signed(index: ShardIndex, edit: Edit, tasks: Iterable[str]) -> None:
    """Check that headers of edited shards that name an edit name the one in this folder. Raises CheckError."""
    expected = edit_digest(edit)
    for shard in sorted({index.tensors[name].shard for name in tasks}):
        said = metadata_of(index.folder / shard).get(PLAN_KEY, expected)
        if said != expected:
            raise CheckError(f"{index.folder / shard}: its header names another plan ({said[:12]}…) than {PLAN} holds ({expected[:12]}…)")


def _near(index: ShardIndex, what: str, said: float, found: float, within: float, share: float = _SAME) -> None:
    """Raises CheckError if a figure in the proof differs from the one that was found."""
    if not math.isclose(found, said, rel_tol=share, abs_tol=within):
        raise CheckError(f"{index.folder}: {what} is {found:.6e}, the proof says {said:.6e}")


def _compared(
    index: ShardIndex,
    folder: ModelFolder,
    edit: Edit,
    proof: Proof,
    listed: Mapping[str, TensorProof],
    base: ModelFolder,
    advance: Callable[[int], None],
) -> int:
    """Compare every tensor and side file with the base, edited or not. Raises CheckError."""
    source = open_index(base.path)
    tasks, untied = edit_tasks(source, base, edit), to_untie(source, base, edit)
    output = plan_output(source, tasks, untied)
    _same_places(index, output.tensors)
    if different := sorted(set(tasks) ^ set(listed)):
        raise CheckError(f"{base.path}: {different[0]}: the edit of this base and {PROOF} disagree about this tensor")
    _equal(folder, "unpacked", list(proof.unpacked), list(output.unpacked))
    scales = companions(tasks.values())
    for name in output.tensors:
        if name in tasks or output.leaves(name, source):
            _came_from(source, index, output, name, tasks.get(name), listed.get(name))
        elif name not in scales:
            _identical(source, source.tensors[untied[0] if untied and name == untied[1] else name], index, index.tensors[name])
        advance(1)
    config = new_config(_json(base.path / "config.json"), output, unties(base, output))
    same_side_files(base.path, folder.path, set() if config is None else {"config.json"})
    if config is not None and _json(folder.path / "config.json") != config:
        raise CheckError(f"{folder.path / 'config.json'}: differs from the base in more than the edit changes")
    if added := [name for name in everything(folder.path) if name.suffix in _LOADED and not (base.path / name).exists()]:
        raise CheckError(f"{folder.path / added[0]}: is not in the base")
    return len(output.tensors)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _same_places(index: ShardIndex, wanted: Mapping[str, TensorInfo]) -> None:
    if different := sorted(set(wanted) ^ set(index.tensors)):
        raise CheckError(f"{index.folder}: {different[0]} is {'missing' if different[0] in wanted else 'not in the base'}")
    for name, info in wanted.items():
        have = index.tensors[name]
        if (have.shard, have.dtype, have.shape) != (info.shard, info.dtype, info.shape):
            found, expected = (f"{i.dtype} {list(i.shape)} in {i.shard}" for i in (have, info))
            raise CheckError(f"{index.folder}: {name} is {found}, but from this base it must be {expected}")


def _came_from(source: ShardIndex, index: ShardIndex, output: Output, name: str, task: EditTask | None, entry: TensorProof | None) -> None:
    """Check that a tensor is the result of editing or unpacking the base's tensor again. Raises CheckError."""
    before, parts = edited(source, task) if task is not None else (None, unpacked(source, name, output.unpacked[module_of(name)]))
    if before is not None and entry is not None:
        if before.blake3 != entry.blake3_before:
            raise CheckError(f"{source.folder}: {name} is not the tensor that was edited (BLAKE3 differs)")
        _near(source, f"{name}: before", entry.before, before.component, _SAME * before.size)
        _near(source, f"{name}: aim", entry.aim, before.aim, _SAME * before.size)
        _near(source, f"{name}: error", entry.error, abs(entry.after - entry.aim) / before.size if before.size else 0.0, 0.0)
        roundings = (("rounding", before.rounding, entry.rounding), ("plain_rounding", before.plain_rounding, entry.plain_rounding))
        for what, value, said in roundings:
            if value is not None and said is not None:
                _near(source, f"{name}: {what}", said, value, 0.0, 0.01)
            elif value != said:
                raise CheckError(f"{source.folder}: {name}: {what} is {value}, the proof says {said}")
    again, stored = list(parts.values()), [index.read(part) for part in parts]
    if digest_of(*again) == digest_of(*stored):
        return
    if task is None or not _distance(values(task, again), values(task, stored)) <= task.stored.written.again(index.tensors[name].dtype):
        raise CheckError(f"{index.folder}: {name} is not the result of {'editing' if task else 'unpacking'} the base's tensor")


def _distance(a: Tensor, b: Tensor) -> float:
    """The Frobenius norm of the difference relative to the first tensor, in pieces."""
    pieces = list(zip(torch.split(a.flatten(), _PIECE), torch.split(b.flatten(), _PIECE), strict=True))
    apart = math.hypot(*(float((x.double() - y.double()).norm()) for x, y in pieces))
    return apart / (math.hypot(*(float(x.double().norm()) for x, _ in pieces)) or 1.0)


def _identical(source: ShardIndex, old: TensorInfo, index: ShardIndex, new: TensorInfo) -> None:
    """Compare two tensors byte for byte. Raises CheckError with the first byte that differs."""
    if (byte := first_difference(source, old, index, new)) is not None:
        raise CheckError(f"{index.folder}: {new.name} differs from the base at its byte {byte}, though it was not edited")
