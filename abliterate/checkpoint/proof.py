"""The proof of an edit, measured on the bytes on disk: ``abliteration.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from abliterate import __version__
from abliterate.checkpoint.index import ShardIndex, open_index
from abliterate.checkpoint.orthogonalise import component_along
from abliterate.checkpoint.tasks import EditTask
from abliterate.errors import CheckError

NAME = "abliteration.json"
SCHEMA = "abliterate/abliteration/1"
# Largest left-over of a full-strength edit, relative to the tensor's norm, by the type that it is rounded to.
TOLERANCE = {"F64": 1e-6, "F32": 1e-6, "F16": 1e-3, "BF16": 1e-3}


@dataclass(frozen=True)
class TensorProof:
    """What one tensor held along the directions before and after.

    ``left`` is ‖R W'‖ / ‖R W‖, what is left of the component (1 - strength when exact); ``error`` is the distance of
    ‖R W'‖ from that aim relative to ‖W‖, and is what the tolerance of the storage type judges.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    strength: float
    before: float
    after: float
    left: float
    error: float
    sha256: str


def prove(source: ShardIndex, edited: Path, tasks: Mapping[str, EditTask], advance: Callable[[int], None]) -> list[TensorProof]:
    """Read every edited tensor back from the new folder and measure it. Raises CheckError where one is not exact."""
    written = open_index(edited)
    if set(written.tensors) != set(source.tensors):
        raise CheckError(f"{edited}: the tensors written are not those of {source.folder}")
    proofs = []
    for name, task in tasks.items():
        proofs.append(_measure(source, written, name, task))
        advance(1)
    wrong = [p for p in proofs if not p.error <= TOLERANCE[p.dtype]]  # NaN is wrong too
    if wrong:
        worst = max(wrong, key=lambda p: p.error)
        raise CheckError(
            f"{len(wrong)} edited tensors keep more of the direction than rounding explains (worst: {worst.name}, {worst.error:.2e})"
        )
    return proofs


def _measure(source: ShardIndex, written: ShardIndex, name: str, task: EditTask) -> TensorProof:
    old, new = source.read(name), written.read(name)
    before, after = component_along(old, task.rows, task.axis), component_along(new, task.rows, task.axis)
    size = float(old.double().norm())
    info = written.tensors[name]
    with (written.folder / info.shard).open("rb") as file:
        file.seek(info.start)
        digest = hashlib.sha256(file.read(info.nbytes)).hexdigest()
    aim = (1 - task.strength) * before
    return TensorProof(
        name=name, kind=task.kind, shape=info.shape, dtype=info.dtype, strength=task.strength, before=before, after=after,
        left=after / before if before else 0.0, error=abs(after - aim) / size if size else 0.0, sha256=digest,
    )  # fmt: skip


def proof_document(proofs: list[TensorProof], base: str, embedding: str, tied: bool, skipped: list[str]) -> dict[str, Any]:
    """The content of ``abliteration.json``."""
    return {
        "schema": SCHEMA,
        "abliterate": __version__,
        "base_model": base,
        "embedding": {"policy": embedding, "tied_to_unembedding": tied},
        "formula": "W' = W - strength * R^T (R W), in float32, rounded once",
        "tensors": [asdict(p) for p in proofs],
        "worst": {
            "left": max((p.left for p in proofs), default=0.0),
            "error": max((p.error for p in proofs), default=0.0),
        },
        "not_edited": skipped,
    }


def write_proof(document: dict[str, Any], folder: Path) -> None:
    (folder / NAME).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
