"""The derived checkpoint's README.md: what was removed, kept, measured, and what was not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from abliterate import __version__
from abliterate.report.page import corrected, interval, percent

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def model_card(proof: Mapping[str, Any], report: Mapping[str, Any] | None) -> str:
    """Markdown from the proof, and from the report once there is one."""
    made = Environment(
        loader=PackageLoader("abliterate.report"),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = percent
    made.filters["interval"] = interval
    made.filters["corrected"] = corrected
    made.filters["line"] = one_line
    made.filters["code"] = code
    hub_id = proof["base_model"] if _HUB_ID.fullmatch(proof["base_model"]) else None
    return made.get_template("card.md.jinja2").render(proof=proof, report=report, version=__version__, hub_id=hub_id)


def one_line(text: object) -> str:
    """A user's text as one line of Markdown in which nothing is markup."""
    flat = " ".join(str(text).split()).replace("`", "'").replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\\[\]*_!|~#])", r"\\\1", flat)


def code(text: object) -> str:
    """A user's text for a code span of one line, harmless also where a renderer knows no code spans."""
    return " ".join(str(text).split()).replace("`", "'").replace("<", "‹").replace("](", "] (")
