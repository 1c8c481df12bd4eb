"""Memory that is read into again and again: taking fresh pages from the system costs more time than the reading itself."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import torch
from torch import Tensor

WASTE = 1.25  # a buffer may be so much larger than what it is lent for


class Buffers:
    """Bytes in memory, lent and taken back; used by several threads at once. ``pinned`` ones can be copied to a GPU while it computes."""

    def __init__(self, pinned: bool = False) -> None:
        self._free: list[Tensor] = []
        self._lock = threading.Lock()
        self._pinned = pinned

    def lend(self, nbytes: int) -> Tensor:
        """A uint8 tensor of ``nbytes``, with anything in it."""
        with self._lock:
            fitting = [b for b in self._free if nbytes <= b.numel() <= WASTE * nbytes]
            if fitting:
                best = min(fitting, key=lambda b: b.numel())
                self._free = [b for b in self._free if b is not best]
                return best[:nbytes]
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._pinned)

    def take_back(self, lent: Iterable[Tensor]) -> None:
        """Whoever has them must not use them any more."""
        with self._lock:
            self._free += [b.new_empty(0).set_(b.untyped_storage()) for b in lent if b.numel()]

    def close(self) -> None:
        """Give what is not lent back to the system."""
        with self._lock:
            self._free.clear()
