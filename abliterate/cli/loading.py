"""How torch and transformers are imported, once a command runs."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Around the imports of torch and transformers: collecting garbage among their half a million objects, which all stay, takes as long
    as a third of the imports, and again at the end of the process; so these objects are left out of it."""
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
