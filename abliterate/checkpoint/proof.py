"""The proof of an edit, measured on the bytes on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from abliterate.checkpoint.orthogonalise import read_component
from abliterate.checkpoint.records import TensorProof
from abliterate.checkpoint.stream import WORKERS, Before, digest_of
from abliterate.checkpoint.tasks import SCALES, EditTask
from abliterate.errors import CheckError
from abliterate.model.formats import fp8
from abliterate.model.index import ShardIndex

FORMULA = "W' = W - strength * w (q W), in float32, rounded once; q = R and w = R^T, behind a norm q = R D and w = D^-1 R^T"
FLOOR = 1e-36  # a component this small counts as zero: float32 can't square it, and its rounding error in storage is as large as itself
# The largest allowed distance of ‖R W'‖ from its aim, relative to the tensor's norm, by the stored dtype.
TOLERANCE = {"F64": 1e-6, "F32": 1e-6, "F16": 1e-3, "BF16": 1e-3, "F8_E4M3": 1e-3}


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
    wrong = [p for p in proofs if not p.error <= TOLERANCE[p.dtype]]  # NaN is wrong too
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
    """A tensor as stored, with its scales if it is FP8."""
    weight = index.read(task.name)
    return [weight, index.read(task.name + SCALES)] if index.tensors[task.name].dtype == "F8_E4M3" else [weight]


def values(task: EditTask, stored: Sequence[Tensor]) -> Tensor:
    """The values of a stored tensor: FP8 is dequantised with its block scales, other dtypes are returned unchanged."""
    return fp8.dequantise(stored[0], stored[1], task.block) if len(stored) > 1 else stored[0]
