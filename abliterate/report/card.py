"""The derived checkpoint's README.md: what was removed, kept, measured, and what was not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from abliterate import __version__
from abliterate.report.page import interval, percent


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
    made.filters["line"] = one_line
    return made.get_template("card.md.jinja2").render(proof=proof, report=report, version=__version__)


def one_line(text: object) -> str:
    """A user's text as one line of Markdown that starts no markup."""
    return " ".join(str(text).split()).replace("`", "'").replace("<", "&lt;").replace("|", "\\|")
