"""The page's colours of kinds of replies, as CSS: from their records, on light, dark and printed pages."""

from __future__ import annotations

from functools import cache

from abliterate.report.bars.kinds import KINDS, Kind

_PATTERNED = ("lined", "dotted", "crossed")


@cache
def outcome_css() -> str:
    """A colour of each kind of replies, and how its part of a bar and its chip are drawn."""
    light, dark = (" ".join(f"--o-{kind.name}: {kind.colours[i]};" for kind in KINDS) for i in (0, 1))
    lines = [
        f":root {{ {light} }}",
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}",
        f"@media print {{ :root {{ {light} }} }}",
        *map(_drawn, KINDS),
    ]
    return "\n".join(lines)


def patterns() -> list[Kind]:
    """The kinds that are filled with a pattern of their own; each is called ``p-NAME``."""
    return [kind for kind in KINDS if kind.look in _PATTERNED]


def _drawn(kind: Kind) -> str:
    name, colour = kind.name, f"var(--o-{kind.name})"
    bars = {
        "solid": f"fill: {colour};",
        "hatched": "fill: url(#hatch);",
        "dashed": f"fill: var(--back); stroke: {colour}; stroke-dasharray: 3 3;",
    }
    chips = {
        "hatched": f"border-left: 5px double {colour};",
        "dashed": f"border-left-style: dashed; border-left-color: {colour};",
        "lined": f"border-left: 5px double {colour};",
    }
    ink = "--on-dark" if kind.light_text else "--on-light"
    halo = f" paint-order: stroke; stroke: {colour}; stroke-width: 5px;" if kind.look in _PATTERNED else ""
    text = f" .bar text.on-{name} {{ fill: var({ink});{halo} }}" if kind.light_text or halo else ""
    bar, chip = bars.get(kind.look, f"fill: url(#p-{name});"), chips.get(kind.look, f"border-left-color: {colour};")
    return f"rect.o-{name} {{ {bar} }} .chip.o-{name} {{ {chip} }}{text}"
