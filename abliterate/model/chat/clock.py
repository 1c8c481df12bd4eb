"""Stop the clock that a chat template reads (``strftime_now``, a function that transformers provides).

A template that shows the time would turn the same prompt into different tokens each time, and give the edited model other prompts than
the base. transformers accepts no other clock from a caller (it replaces what isn't plain data), so the time is written into the template.
"""

from __future__ import annotations

import json
import re
import string
from datetime import datetime

from abliterate.errors import InputError

_READS = "strftime_now"
_CODE = re.compile(r"%[-_0^#+]*\d*[EO]?[A-Za-z%]")  # strftime codes, with the flags and widths of C libraries
_COMMON = [f"%{flag}{letter}" for flag in ("", "-") for letter in (*string.ascii_letters, "%") if letter not in "EO"]
# Jinja on one line that ends with a block: transformers drops the line break after it, so it adds nothing to the text.
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
    """Whether a chat template reads the clock."""
    return _READS in template


def stopped(template: str, at: datetime) -> str:
    """A chat template in which the time is always ``at``, formatted as by ``datetime.strftime``; unchanged if it reads no clock."""
    if not reads_clock(template):
        return template
    codes = [*_COMMON, *_CODE.findall(template)]
    return _STANDING.replace("TABLE", json.dumps({code: at.strftime(code) for code in codes})) + template


def parsed(text: object, where: str) -> datetime:
    """The local time in a record. Raises InputError that names the record if it is not a time."""
    try:
        return datetime.fromisoformat(str(text)).replace(tzinfo=None)
    except ValueError:
        raise InputError(f"{where}: its clock ({str(text)[:40]!r}) is not a time such as 2026-01-31T12:00:00") from None
