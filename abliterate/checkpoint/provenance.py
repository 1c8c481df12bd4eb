"""The provenance metadata in the header of an edited shard."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3

from abliterate import __version__
from abliterate.checkpoint.stream import bytes_of
from abliterate.model.edit import Edit, load_edit

PLAN_KEY = "abliterate_plan"


def provenance(base: str, plan: Path) -> dict[str, str]:
    """Header metadata: the version of abliterate, the base's name, and a digest of the edit as loaded from its plan file."""
    return {"abliterate": __version__, "abliterate_base": base, PLAN_KEY: edit_digest(load_edit(plan))}


def edit_digest(edit: Edit) -> str:
    """BLAKE3 of an edit's numbers and policies. The file itself is not hashed, because safetensors writes metadata in varying order."""
    digest = blake3(f"{edit.embedding} {edit.keep_norms} {list(edit.direction.shape)} ".encode())
    for part in (edit.direction.float(), edit.strength.float()):
        digest.update(bytes_of(part))
    return str(digest.hexdigest())
