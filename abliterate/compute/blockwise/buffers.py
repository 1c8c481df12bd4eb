"""Read buffers that are reused: taking fresh pages from the system costs more time than the reading itself."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch
from torch import Tensor

WASTE = 1.25  # a buffer may be this many times as large as requested


class Buffers:
    """Buffers that are lent and returned, by several threads at once. ``pinned`` ones can be copied to a GPU while it computes."""

    def __init__(self, pinned: bool = False) -> None:
        self._free: list[Tensor] = []
        self._lock = threading.Lock()
        self._pinned = pinned

    def lend(self, nbytes: int) -> Tensor:
        """An uninitialised uint8 tensor of ``nbytes``."""
        with self._lock:
            fitting = [b for b in self._free if nbytes <= b.numel() <= WASTE * nbytes]
            if fitting:
                best = min(fitting, key=lambda b: b.numel())
                self._free = [b for b in self._free if b is not best]
                return best[:nbytes]
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._pinned)

    def take_back(self, lent: Iterable[Tensor]) -> None:
        """Return lent buffers; the borrower must not use them any more."""
        with self._lock:
            self._free += [b.new_empty(0).set_(b.untyped_storage()) for b in lent if b.numel()]

    def close(self) -> None:
        """Free the buffers that are not lent."""
        with self._lock:
            self._free.clear()
