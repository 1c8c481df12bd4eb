"""Plots of how an edit was found, drawn by matplotlib; their titles and keys are part of the page.

No user's text is drawn: names of sets and estimators are in the key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from markupsafe import Markup

from abliterate.report.page.svg import ACCENT, BACK, BASE, DIM, LINE, TEXT, inline, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
INDEX = "activation index (0 = embedding, l + 1 = after block l)"
_SIZE = (5.0, 2.9)  # inches of 72 units: as wide as a phone's screen, so that the text is not scaled there
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2.5), (1.5, 2), (7, 2, 1.5, 2))
_MARKS = ("o", "s", "^", "D", "v")
_POSITIONS = 12  # rows of the heat map: the last positions are the most informative
_POINTS = 250  # points drawn per prompt set
_LEVELS = 20


@dataclass(frozen=True)
class Plot:
    """A figure with its title, its caption and its key: (kind of mark, name) pairs."""

    svg: Markup
    title: str
    caption: str
    key: tuple[tuple[str, str], ...] = ()


def lines(
    name: str,
    title: str,
    caption: str,
    series: Mapping[str, Sequence[float | None]],
    axis: tuple[str, str],
    reach: tuple[float, float] | None,
    rest: float | None = None,
) -> Plot:
    """Values by layer, one line per series; ``rest``: the neutral value, drawn as a thin line."""

    def draw(axes: Axes) -> None:
        for number, values in enumerate(series.values()):
            dash, colour = _DASHES[number % 4], (ACCENT, TEXT)[number // 4 % 2]
            there = [float("nan") if value is None else value for value in values]
            style = (0, dash) if dash else "-"
            axes.plot(range(len(there)), there, color=colour, linewidth=1.7, linestyle=style, marker="o" if len(there) == 1 else None)
        if rest is not None:
            axes.axhline(rest, color=LINE, linewidth=1.0)
        axes.set(xlabel=axis[0], ylabel=axis[1])
        if reach is not None:
            low, high = reach
            axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))

    best = [f"{label}: highest {max(found):.2f}" for label, values in series.items() if (found := [v for v in values if v is not None])]
    key = tuple((f"line{number % 8}", label) for number, label in enumerate(series))
    return Plot(_drawn(name, title, "; ".join(best), draw), title, caption, key)


def separation(name: str, auc: Sequence[Sequence[float]], positions: Sequence[int], chosen: tuple[int, int] | None) -> Plot:
    """AUC by activation index and position in the prompt, darker for higher; ``chosen``: index and position of the direction."""
    rows = list(zip(positions, auc, strict=False))[:_POSITIONS]

    def draw(axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        for height, (_, values) in enumerate(rows):
            left = 0
            for level, run in groupby(round(_LEVELS * max(0.0, 2 * value - 1)) for value in values):
                wide, shade = len(list(run)), level / _LEVELS
                corner = (left - 0.5, height - 0.46)
                axes.add_patch(Rectangle(corner, wide, 0.92, color=ACCENT, alpha=shade, linewidth=0, clip_on=False))
                left += wide
        if chosen is not None and chosen[1] in positions[: len(rows)]:
            corner = (chosen[0] - 0.5, list(positions).index(chosen[1]) - 0.46)
            axes.add_patch(Rectangle(corner, 1, 0.92, fill=False, edgecolor=TEXT, linewidth=1.8, clip_on=False))
        axes.set_xlim(-0.5, max(len(values) for _, values in rows) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [str(position) for position, _ in rows])
        axes.set(xlabel=INDEX, ylabel="position")
        axes.spines[:].set_visible(False)

    value, index, position = max((v, i, p) for p, values in rows for i, v in enumerate(values))
    title = "Separation by layer and position"
    caption = "AUC of target against baseline prompts on val; no colour: 0.5 or less, full colour: 1."
    if len(positions) > len(rows):
        caption += f" Only the last {len(rows)} of {len(positions)} positions are shown."
    key = (("ring", "where the direction was taken"),) if chosen is not None else ()
    found = f"The highest AUC is {value:.2f}, at activation index {index}, position {position}."
    return Plot(_drawn(name, title, found, draw, height=1.2 + 0.2 * len(rows)), title, caption, key)


def cloud(name: str, title: str, caption: str, groups: Mapping[str, Sequence[Sequence[float]]], axis: tuple[str, str]) -> Plot:
    """Points of several groups, each with its own mark: the first filled, the others hollow."""

    def draw(axes: Axes) -> None:
        for number, points in enumerate(groups.values()):
            step = max(1, -(-len(points) // _POINTS))
            _scatter(axes, [(p[0], p[1]) for p in points[::step]], number)
        axes.set(xlabel=axis[0], ylabel=axis[1])

    said = "; ".join(f"{label}: {len(points)} prompts" for label, points in groups.items())
    key = tuple((f"mark{number % 5}", label) for number, label in enumerate(groups))
    return Plot(_drawn(name, title, said, draw), title, caption, key)


def _scatter(axes: Axes, points: Sequence[Point], number: int) -> None:
    filled, size = number == 0, 14 if number == 0 else 16
    colour = (ACCENT, BASE, TEXT)[min(number, 2)]
    xs, ys = zip(*points, strict=True) if points else ((), ())
    marker = _MARKS[number % len(_MARKS)]
    axes.scatter(xs, ys, s=size, marker=marker, c=colour if filled else "none", edgecolors=colour, linewidths=0.9, alpha=0.75)


@dataclass(frozen=True)
class TradePoint:
    """A point of a trade-off: whether it is on the front, chosen, and better than what was estimated."""

    x: float
    y: float
    front: bool
    chosen: bool
    improved: bool = False


def trade(
    name: str,
    title: str,
    caption: str,
    points: Sequence[TradePoint],
    axis: tuple[str, str],
    best: str = "Pareto front",
    improved: str = "improved",
) -> Plot:
    """Points: those on the front are joined and filled, the chosen one is ringed; if only some are
    improved, the others are squares. ``best`` and ``improved``: labels in the key for points on the front and for improved ones."""
    front = sorted((p.x, p.y) for p in points if p.front)
    chosen = next(((p.x, p.y) for p in points if p.chosen), None)
    mixed = len({p.improved for p in points}) > 1

    def draw(axes: Axes) -> None:
        if len(front) > 1:
            axes.plot(*zip(*front, strict=True), color=ACCENT, linewidth=1.2, zorder=1)
        for filled, face, edge in ((False, BACK, BASE), (True, ACCENT, ACCENT)):
            for square in (False, True):
                some = [(p.x, p.y) for p in points if p.front == filled and (mixed and not p.improved) == square]
                if some:
                    xs, ys = zip(*some, strict=True)
                    axes.scatter(xs, ys, s=26, c=face, edgecolors=edge, linewidths=1.2, zorder=2, marker="s" if square else "o")
        if chosen is not None:
            axes.scatter(*chosen, s=120, facecolors="none", edgecolors=TEXT, linewidths=1.8, zorder=3)
        axes.set(xlabel=axis[0], ylabel=axis[1])
        axes.margins(0.08, 0.1)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -0.02 * high), high)

    said = f"{len(points)} points." + (f" Chosen: {axis[0]} {chosen[0]:.3g}, {axis[1]} {chosen[1]:.3g}." if chosen else "")
    kinds = (("dot-other", improved), ("square-other", "candidate as estimated")) if mixed else (("dot-other", "others"),)
    filled = (("dot-front", f"filled: {best}" if mixed else best),) if front else ()
    return Plot(_drawn(name, title, said, draw), title, caption, (*filled, *kinds, ("ring-round", "chosen")))


def _drawn(name: str, title: str, description: str, draw: Callable[[Axes], None], height: float = _SIZE[1]) -> Markup:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(settings(name)):
        figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color=LINE, linewidth=0.6, alpha=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelcolor=DIM)
        draw(axes)
        if not axes.spines["left"].get_visible():
            axes.grid(visible=False)
        return inline(figure, name, title, description)
