"""Plots as SVG in data URIs: an image in a page can run no script."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Mapping, Sequence

_GREY = "#8a8f98"


def layer_plot(series: Mapping[str, Sequence[float]]) -> str:
    """AUC on val by activation index, one line an estimator; a data URI."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "abliterate", "text.color": _GREY, "axes.labelcolor": _GREY}):
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for (name, values), style in zip(series.items(), itertools.cycle(("-", "--", ":", "-.")), strict=False):
            axes.plot(range(len(values)), values, style, label=name, linewidth=1.8)
        axes.axhline(0.5, color=_GREY, linewidth=0.8)
        axes.set(xlabel="activation index (0 = embedding, l + 1 = after block l)", ylabel="AUC on val", ylim=(0, 1.03))
        axes.tick_params(colors=_GREY)
        for spine in axes.spines.values():
            spine.set_color(_GREY)
        axes.legend(frameon=False, labelcolor=_GREY, loc="lower right")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
