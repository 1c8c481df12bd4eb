"""Store prompts' streams that may not fit in memory: beyond a budget they are in memory-mapped files.

Mapped pages are written back to disk under memory pressure. The files are deleted once they are mapped, so nothing is left behind even
after a crash.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor


class Spill:
    """Keeps streams on their device up to ``budget`` bytes, then in files in ``folder`` (None: the system's temporary folder)."""

    def __init__(self, budget: int, folder: Path | None = None) -> None:
        self._left, self._folder = budget, folder
        self.in_files = 0

    def kept(self, stream: Tensor) -> Tensor:
        """The stream, moved to where there is room for it."""
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
        """Store ``new`` in place of ``old``, which came from here and has the same shape."""
        return new if old.device == new.device and not self.in_files else old.copy_(new)
