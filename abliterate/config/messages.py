"""Plain messages for pydantic's kinds of validation error (https://docs.pydantic.dev/latest/errors/validation_errors)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from keyword import iskeyword

from pydantic_core import ErrorDetails

# For each kind of error that our settings can raise; braces hold keys of its context.
_WORDS = {
    "int_type": "not a whole number",
    "int_parsing": "not a whole number",
    "int_parsing_size": "a whole number with too many digits",
    "int_from_float": "not a whole number",
    "float_type": "not a number",
    "float_parsing": "not a number",
    "finite_number": "not a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "must be text",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "not an id (only letters, digits and . + -)",
    "tuple_type": "must be a list of texts",
    "too_short": "must name at least {min_length}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "not one of {choices}",
}
_LONGEST = 60  # characters of a value in a message


def flag_of(name: str) -> str:
    """The flag of a field. A field whose name would be a word of Python (``as``) ends with an underscore, its flag does not."""
    return "--" + name.rstrip("_").replace("_", "-")


def field_of(key: str) -> str:
    """The field of a TOML key, which is written like the field or like its flag."""
    name = key.replace("-", "_")
    return f"{name}_" if iskeyword(name) else name


def in_plain_words(error: ErrorDetails, known: Iterable[str]) -> str:
    """One line for an error of a config: the flag, the given value, and what it must be. ``known``: the names of the config's fields."""
    name = str(error["loc"][0]) if error["loc"] else "config"
    if error["type"] == "missing":
        return f"{flag_of(name)} is needed"
    if error["type"] == "extra_forbidden":
        near = get_close_matches(name, [each.rstrip("_") for each in known], 3)
        meant = f"did you mean {' or '.join(near)}?" if near else "the settings are the command's flags; --help lists them"
        return f"no setting {name!r}: {meant}"
    context = dict(error.get("ctx") or {})
    choices = ", ".join(re.findall(r"'([^']*)'", str(context.get("expected", ""))))
    words = _WORDS.get(error["type"])
    return f"{flag_of(name)} {_given(error['input'])}: {words.format(**context, choices=choices) if words else error['msg']}"


def _given(value: object) -> str:
    """The given value; in quotes if it isn't one plain word."""
    plain = isinstance(value, str) and re.fullmatch(r"[^\s'\"]+", value)
    text = str(value) if plain else repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
