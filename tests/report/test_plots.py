"""The layer plot: an image and nothing else."""

from __future__ import annotations

import base64
from xml.etree import ElementTree

from abliterate.report.plots import layer_plot

PREFIX = "data:image/svg+xml;base64,"


def svg(series: dict[str, list[float]]) -> ElementTree.Element:
    uri = layer_plot(series)
    assert uri.startswith(PREFIX)
    return ElementTree.fromstring(base64.b64decode(uri.removeprefix(PREFIX)))


def lines(root: ElementTree.Element) -> int:
    groups = [e.get("id") or "" for e in root.iter() if e.tag.endswith("}g")]
    return sum(group.startswith("line2d") for group in groups)


def test_the_plot_is_an_svg_without_scripts_or_outer_references() -> None:
    root = svg({"mean": [0.5, 0.8, 1.0], "<script>": [0.4, 0.6, 0.7]})
    assert root.tag.endswith("}svg")
    assert not [e.tag for e in root.iter() if e.tag.rpartition("}")[2] in ("script", "image", "foreignObject", "a")]
    references = [value for e in root.iter() for key, value in e.attrib.items() if key.endswith("href")]
    assert all(value.startswith("#") for value in references)


def test_the_same_series_give_the_same_bytes() -> None:
    assert layer_plot({"mean": [0.5, 1.0]}) == layer_plot({"mean": [0.5, 1.0]})


def test_every_series_is_drawn() -> None:
    drawn = [lines(svg({f"estimator {i}": [0.1 * i, 0.5, 0.6] for i in range(count)})) for count in (1, 4, 5)]
    per_series = (drawn[1] - drawn[0]) / 3
    assert per_series >= 1 and drawn[2] - drawn[1] == per_series
