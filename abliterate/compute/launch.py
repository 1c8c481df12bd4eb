"""Whether this process is one of several, from torchrun's environment variables; needs no torch."""

from __future__ import annotations

import os


def started_as_several() -> bool:
    """Whether torchrun started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ


def own_rank() -> int:
    """This process's number under torchrun; 0 without it."""
    return int(os.environ.get("RANK", "0")) if started_as_several() else 0
