"""The page's colours of outcomes, as CSS: from their records, on light, dark and printed pages."""

from __future__ import annotations

from functools import cache

from abliterate.outcomes.records import RECORDS, OutcomeRecord


@cache
def outcome_css() -> str:
    """A colour of each outcome, and how its part of a bar and its chip are drawn."""
    light, dark = (" ".join(f"--o-{record.name}: {record.colours[i]};" for record in RECORDS) for i in (0, 1))
    lines = [
        f":root {{ {light} }}",
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}",
        f"@media print {{ :root {{ {light} }} }}",
        *map(_drawn, RECORDS),
    ]
    return "\n".join(lines)


def _drawn(record: OutcomeRecord) -> str:
    name, colour = record.name, f"var(--o-{record.name})"
    bars = {
        "solid": f"fill: {colour};",
        "hatched": "fill: url(#hatch);",
        "dashed": f"fill: var(--back); stroke: {colour}; stroke-dasharray: 3 3;",
    }
    chips = {
        "solid": f"border-left-color: {colour};",
        "hatched": f"border-left: 5px double {colour};",
        "dashed": f"border-left-style: dashed; border-left-color: {colour};",
    }
    text = f" .bar text.on-{name} {{ fill: var(--on-dark); }}" if record.light_text else ""
    return f"rect.o-{name} {{ {bars[record.look]} }} .chip.o-{name} {{ {chips[record.look]} }}{text}"
