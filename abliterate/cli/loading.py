"""Faster imports of torch and transformers, which a command makes only when it runs."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Exclude the objects that torch and transformers create on import from garbage collection.

    There are half a million of them and all stay alive; searching them takes as long as a third of the imports, and again at exit.
    """
    first = "torch" not in sys.modules
    if first:
        gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
            gc.enable()
            atexit.register(gc.freeze)
