"""The clock that a chat template reads (``strftime_now``, a function that transformers gives it), made to stand still.

A template that shows the time would give each prompt other tokens at each asking, and the edited model other prompts than the base.
transformers takes no other clock from a caller (what isn't plain data is replaced), so the time is written into the template itself.
"""

from __future__ import annotations

import json
import re
import string
from datetime import datetime

from abliterate.errors import InputError

_READS = "strftime_now"
_CODE = re.compile(r"%[-_0^#+]*\d*[EO]?[A-Za-z%]")  # of strftime, with the flags and widths of C libraries
_COMMON = [f"%{flag}{letter}" for flag in ("", "-") for letter in (*string.ascii_letters, "%") if letter not in "EO"]
# Jinja, all in one line that ends in a block: transformers drops the line break behind it, so it adds nothing to the text.
_STANDING = (
    "{% macro strftime_now(format) %}{% set table = TABLE %}{% set at = namespace(code='') %}{% for c in format %}"
    "{% if not at.code and c != '%' %}{{ c }}{% else %}{% set at.code = at.code ~ c %}"
    "{% if at.code in table %}{{ table[at.code] }}{% set at.code = '' %}"
    "{% elif at.code != '%' and c not in '-_0^#+123456789EO' %}{{ at.code }}{% set at.code = '' %}{% endif %}"
    "{% endif %}{% endfor %}{{ at.code }}{% endmacro %}\n"
)


def now() -> datetime:
    """The local time, to the second."""
    return datetime.now().replace(microsecond=0)


def reads_clock(template: str) -> bool:
    """Whether a chat template asks for the time."""
    return _READS in template


def stopped(template: str, at: datetime) -> str:
    """A chat template in which it is always that time, formatted as ``datetime.strftime`` does; one without a clock as it is."""
    if not reads_clock(template):
        return template
    codes = [*_COMMON, *_CODE.findall(template)]
    return _STANDING.replace("TABLE", json.dumps({code: at.strftime(code) for code in codes})) + template


def parsed(text: object, where: str) -> datetime:
    """The local time that a record says. Raises InputError, naming the record, where it is no time."""
    try:
        return datetime.fromisoformat(str(text)).replace(tzinfo=None)
    except ValueError:
        raise InputError(f"{where}: its clock ({str(text)[:40]!r}) is not a time as in 2026-01-31T12:00:00") from None
