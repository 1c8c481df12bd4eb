"""What the header of an edited shard says of where it comes from."""

from __future__ import annotations

from blake3 import blake3

from abliterate import __version__
from abliterate.checkpoint.stream import bytes_of
from abliterate.model.edit import Edit

PLAN_KEY = "abliterate_plan"


def provenance(base: str, edit: Edit) -> dict[str, str]:
    """Header metadata: the program's version, the base's name, the edit as its file gives it back."""
    return {"abliterate": __version__, "abliterate_base": base, PLAN_KEY: edit_digest(edit)}


def edit_digest(edit: Edit) -> str:
    """BLAKE3 of an edit's numbers and policies, and not of its file: safetensors writes the same metadata in any order."""
    digest = blake3(f"{edit.embedding} {edit.keep_norms} {list(edit.direction.shape)} ".encode())
    for part in (edit.direction.float(), edit.strength.float()):
        digest.update(bytes_of(part))
    return str(digest.hexdigest())
