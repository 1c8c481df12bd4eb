"""The base class of all settings, and checks for values that may be a server's URL."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from abliterate.errors import InputError

Sets = Annotated[tuple[str, ...], Field()]


class Config(BaseModel):
    """Settings: frozen and validated. Unknown keys and numbers that are not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


def is_url(given: str) -> bool:
    """Whether the value is meant as a server's address."""
    return "://" in given


def with_weights(given: str, flag: str) -> str:
    """Return the model's name unchanged. Raises InputError for a server, which doesn't show its weights."""
    if is_url(given):
        raise InputError(f"{flag} is a server's URL, but this needs the weights: give a folder, a Hub id or a short name")
    return given


def server_url(given: str, flag: str) -> str:
    """A server's base URL without a trailing slash. Raises InputError if it isn't one; the message repeats nothing secret."""
    try:
        parts = urlsplit(given.strip())
        whole = parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number, an unclosed bracket
        whole = False
    if not whole:
        raise InputError(f"{flag}: not the URL of a server; give one like http://host:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InputError(f"{flag}: give only the server's base URL; a key belongs in the environment (ABLITERATE_API_KEY)")
    return f"{parts.scheme.lower()}://{parts.netloc}{parts.path.rstrip('/')}"
