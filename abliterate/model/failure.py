"""One-line errors for whatever transformers raises while it builds, loads or runs a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PretrainedConfig

from abliterate.errors import CheckError, InputError, first_line


@contextmanager
def refused(what: str, config: PretrainedConfig | None = None) -> Iterator[None]:
    """Turn any exception inside into an InputError: the message ``what``, then the reason in brackets.

    For an unknown name, the reason quotes the setting of ``config`` that holds it. InputError and CheckError pass through unchanged.
    """
    try:
        yield
    except (InputError, CheckError):
        raise
    except Exception as error:
        raise InputError(f"{what} ({_reason(error, config)})") from None


def _reason(error: Exception, config: PretrainedConfig | None) -> str:
    """The error in one line; for an unknown name, with the setting of the config that holds it (a rope type, an activation)."""
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        named = [f"{key} is {value!r}" for key, value in _settings(config.to_dict() if config else {}) if value == error.args[0]]
        return f"{' and '.join(named)}, which is unknown" if named else f"unknown name {error.args[0]!r}"
    return first_line(error)


def _settings(entries: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a config with its dotted key, nested ones included."""
    for key, value in entries.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
