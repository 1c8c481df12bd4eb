"""Format figures for people: bytes, counts, operations and times."""

from __future__ import annotations

_GIGA = 1e9


def size(nbytes: int | float) -> str:
    """``688.6 GB``, ``12.4 MB``."""
    if nbytes >= 1e15:
        return f"{nbytes / 1e15:.2f} PB"
    if nbytes >= 1e12:
        return f"{nbytes / 1e12:.2f} TB"
    return f"{nbytes / _GIGA:.2f} GB" if nbytes >= 1e7 else f"{nbytes / 1e6:.2f} MB"


def count(numbers: int | float) -> str:
    """``7.62 G``, ``4.20 M``."""
    return f"{numbers / _GIGA:.2f} G" if numbers >= 1e8 else f"{numbers / 1e6:.2f} M"


def operations(flops: int | float) -> str:
    """Floating-point operations: ``12.4 TFLOP``."""
    for unit, scale in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if flops >= scale:
            return f"{flops / scale:.1f} {unit}"
    return f"{flops / _GIGA:.2f} GFLOP"


def duration(seconds: int | float) -> str:
    """``40 s``, ``12 min``, ``3 h 20 min``, ``5 days``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 10:
        return f"{hours} h {minutes} min"
    return f"{round(seconds / 3600)} h" if hours < 72 else f"{seconds / 86400:.0f} days"


def listed(number: int, thing: str, at_most: bool = False) -> str:
    """``1 sweep``, ``at most 3 sweeps``."""
    return f"{'at most ' if at_most and number > 1 else ''}{number} {thing}{'' if number == 1 else 's'}"
