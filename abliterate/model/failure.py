"""What transformers raises while it builds, loads or runs a model: each architecture fails in its own way, and each is one line here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PretrainedConfig

from abliterate.errors import CheckError, InputError, first_line


@contextmanager
def refused(what: str, config: PretrainedConfig | None = None) -> Iterator[None]:
    """Whatever breaks inside is bad input: ``what`` can't be done, and why; with the setting of the ``config`` that nothing is known of.

    Raises InputError; what is one already, or a CheckError, goes through as it is.
    """
    try:
        yield
    except (InputError, CheckError):
        raise
    except Exception as error:
        raise InputError(f"{what} ({_reason(error, config)})") from None


def _reason(error: Exception, config: PretrainedConfig | None) -> str:
    """A looked-up name that isn't there, as a setting of the config where it is one's value (a rope type, an activation)."""
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        named = [f"{key} is {value!r}" for key, value in _settings(config.to_dict() if config else {}) if value == error.args[0]]
        return f"{' and '.join(named)}, which it doesn't know" if named else f"it knows no {error.args[0]!r}"
    return first_line(error)


def _settings(entries: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a config with its dotted key, those inside others too."""
    for key, value in entries.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
