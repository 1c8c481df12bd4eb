"""Embed a matplotlib figure in the page: a small SVG that takes its colours and font from the page."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Placeholder colours that figures are drawn with. Each stands for a CSS variable of the page, which has a light and a dark theme.
TEXT, DIM, LINE, ACCENT, BASE, BACK = "#010203", "#020304", "#030405", "#040506", "#050607", "#060708"
_VARIABLES = {TEXT: "--text", DIM: "--dim", LINE: "--line", ACCENT: "--accent", BASE: "--base", BACK: "--back"}
_KEPT = (
    "fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "opacity", "fill-opacity", "stroke-opacity",
    "font-size", "font-weight", "text-anchor",
)  # fmt: skip
_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "path.simplify": True,
    "font.size": 11.0,
    "axes.labelsize": 10.0,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
}
_REFERENCE = re.compile(r"url\(#([^)]+)\)|#(.+)")
_NUMBER = re.compile(r"-?\d+\.\d+")


def settings(name: str) -> dict[str, object]:
    """matplotlib's settings for drawing the figure with this name, such that it gives the same bytes each time."""
    colours = {f"{part}color": colour for part, colour in (("axes.edge", LINE), ("axes.label", DIM), ("xtick.", DIM), ("ytick.", DIM))}
    frame = {"axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none", "axes.linewidth": 1.0}
    return {**_SETTINGS, **colours, **frame, "text.color": TEXT, "svg.hashsalt": name, "xtick.major.size": 0, "ytick.major.size": 0}


def inline(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure as an ``svg`` element with a title and a description for screen readers. Its ids begin with ``name``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(buffer.getvalue())
    used = {found for element in root.iter() for found in _referred(element)}
    _clean(root, name, used)
    box = root.get("viewBox", "")
    inner = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    return Markup(
        '<svg class="figure" viewBox="{box}" role="img" aria-labelledby="{name}-title {name}-desc">'
        '<title id="{name}-title">{title}</title><desc id="{name}-desc">{desc}</desc>{inner}</svg>'
    ).format(box=box, name=name, title=title, desc=description, inner=Markup(_rounded(inner)))


def _referred(element: ElementTree.Element) -> list[str]:
    """Ids that an element refers to."""
    values = [v for key, v in element.attrib.items() if key.endswith("href") or "url(" in v]
    return [match[1] or match[2] for value in values for match in _REFERENCE.finditer(value)]


def _clean(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Keep only what is drawn: no namespaces, no metadata, styles as attributes, and only ids that are referred to."""
    element.tag = element.tag.rpartition("}")[2]
    declared = dict(part.split(":", 1) for part in element.attrib.pop("style", "").split(";") if ":" in part)
    attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    attributes |= {key.strip(): value.strip() for key, value in declared.items() if key.strip() in _KEPT}
    if font := declared.get("font", declared.get(" font")):
        attributes["font-size"] = next((part for part in font.split() if part.endswith("px")), "10px")
    element.attrib.clear()
    for key, value in attributes.items():
        if key == "id":
            if value in used:
                element.set("id", f"{name}-{value}")
        elif key not in ("space", "type"):
            element.set(key, _coloured(_REFERENCE.sub(lambda m: _renamed(m, name), value) if _refers(key, value) else value))
    for child in list(element):
        tag = child.tag.rpartition("}")[2] if isinstance(child.tag, str) else ""
        if tag in ("metadata", "style", ""):
            element.remove(child)
        else:
            _clean(child, name, used)
    _hoist(element)
    if not (element.text or "").strip():
        element.text = None
    element.tail = None


def _hoist(group: ElementTree.Element) -> None:
    """Move attributes that all marks of a group share to the group."""
    marks = [child for child in group.iter("use") if child is not group]
    if len(marks) > 1 and group.tag == "g":
        alike = {key: value for key, value in marks[0].attrib.items() if key not in ("x", "y", "href", "opacity")}
        alike = {key: value for key, value in alike.items() if all(mark.get(key) == value for mark in marks)}
        for mark in marks:
            for key in alike:
                del mark.attrib[key]
        group.attrib.update({key: value for key, value in alike.items() if key not in group.attrib})


def _refers(key: str, value: str) -> bool:
    return key == "href" or "url(" in value


def _renamed(match: re.Match[str], name: str) -> str:
    return f"url(#{name}-{match[1]})" if match[1] else f"#{name}-{match[2]}"


def _coloured(value: str) -> str:
    return f"var({_VARIABLES[value]})" if value in _VARIABLES else value


def _rounded(text: str) -> str:
    """Round coordinates to a hundredth of a point; text between tags is unchanged."""
    parts = re.split(r"(<[^>]*>)", text)
    return "".join(_NUMBER.sub(lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), p) if p.startswith("<") else p for p in parts)
