"""Streams of prompts that may be too many for memory: beyond a budget they live in files that are mapped into memory.

Mapped pages go back to the disk under pressure. The files have no names any more once they are mapped, so that nothing is left
behind, whatever happens.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor


class Spill:
    """Keeps streams: on their device while ``budget`` bytes last, then in files of ``folder`` (None: the system's own)."""

    def __init__(self, budget: int, folder: Path | None = None) -> None:
        self._left, self._folder = budget, folder
        self.in_files = 0

    def kept(self, stream: Tensor) -> Tensor:
        """The stream, from now on where there is room for it."""
        nbytes = stream.numel() * stream.element_size()
        if nbytes <= self._left or nbytes == 0:
            self._left -= nbytes
            return stream
        self.in_files += nbytes
        with tempfile.NamedTemporaryFile(prefix="abliterate-", dir=self._folder) as file:
            file.truncate(nbytes)
            mapped = torch.from_file(file.name, shared=True, size=math.prod(stream.shape), dtype=stream.dtype).view(stream.shape)
        return mapped.copy_(stream)

    def instead(self, old: Tensor, new: Tensor) -> Tensor:
        """``new`` in the place of ``old``, which came from here and has the same shape."""
        return new if old.device == new.device and not self.in_files else old.copy_(new)
