"""What the header of an edited shard says of where it comes from."""

from __future__ import annotations

from blake3 import blake3

from abliterate import __version__
from abliterate.checkpoint.stream import bytes_of
from abliterate.model.edit import EditPlan

PLAN_KEY = "abliterate_plan"


def provenance(base: str, plan: EditPlan) -> dict[str, str]:
    """Header metadata: the program's version, the base's name, the plan as its file gives it back."""
    return {"abliterate": __version__, "abliterate_base": base, PLAN_KEY: plan_digest(plan)}


def plan_digest(plan: EditPlan) -> str:
    """BLAKE3 of a plan's numbers and policies, and not of its file: safetensors writes the same metadata in any order."""
    digest = blake3(f"{plan.embedding} {plan.keep_norms} {list(plan.direction.shape)} ".encode())
    for part in (plan.direction.float(), plan.strength.float()):
        digest.update(bytes_of(part))
    return str(digest.hexdigest())
