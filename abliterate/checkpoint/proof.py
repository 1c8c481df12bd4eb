"""The proof of an edit, measured on the bytes on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from abliterate.checkpoint.orthogonalise import read_component
from abliterate.checkpoint.records import TensorProof
from abliterate.checkpoint.stream import WORKERS, Before, digest_of
from abliterate.checkpoint.tasks import EditTask
from abliterate.errors import CheckError
from abliterate.model.index import ShardIndex

FORMULA = "W' = W - strength * w (q W), in float32, rounded once; q = R and w = R^T, behind a norm q = R D and w = D^-1 R^T"
FLOOR = 1e-36  # a component this small counts as zero: float32 can't square it, and its rounding error in storage is as large as itself


def prove(
    written: ShardIndex, tasks: Mapping[str, EditTask], before: Mapping[str, Before], advance: Callable[[int], None] = lambda done: None
) -> list[TensorProof]:
    """Read every edited tensor back from the new folder and measure it. ``advance`` counts bytes.

    Raises CheckError if a tensor is not exact.
    """

    def one(task: EditTask) -> TensorProof:
        made = measure(written, task, before[task.name])
        advance(written.tensors[task.name].nbytes)
        return made

    with ThreadPoolExecutor(WORKERS) as pool:
        proofs = list(pool.map(one, tasks.values()))
    wrong = [p for p in proofs if not p.error <= tasks[p.name].stored.written.tolerance(p.dtype)]  # NaN is wrong too
    if wrong:
        worst = max(wrong, key=lambda p: p.error)
        raise CheckError(
            f"{len(wrong)} edited tensors keep more of the direction than rounding explains (worst: {worst.name}, {worst.error:.2e})"
        )
    return proofs


def measure(written: ShardIndex, task: EditTask, before: Before) -> TensorProof:
    """Measure one tensor of the new folder against its state before the edit."""
    stored = stored_parts(written, task)
    info = written.tensors[task.name]
    found = read_component(values(task, stored), task.removal, task.axis)
    after = found.along if found.finite else float("nan")
    return TensorProof(
        name=task.name, kind=task.kind, shape=info.shape, dtype=info.dtype, strength=task.strength, before=before.component, aim=before.aim,
        after=after, left=after / before.component if before.component else 0.0,
        error=abs(after - before.aim) / before.size if before.size else 0.0, blake3_before=before.blake3, blake3_after=digest_of(*stored),
        rounding=before.rounding, plain_rounding=before.plain_rounding,
    )  # fmt: skip


def stored_parts(index: ShardIndex, task: EditTask) -> list[Tensor]:
    """An edited tensor as stored, with its scales if it has any."""
    return [index.read(part) for part in task.stored.written.parts(task.name)]


def values(task: EditTask, stored: Sequence[Tensor]) -> Tensor:
    """The values of an edited tensor as stored."""
    return task.stored.written.values(stored)
