"""What all settings have in common, and the names of models on servers."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from abliterate.errors import InputError

Sets = Annotated[tuple[str, ...], Field()]


class Config(BaseModel):
    """Frozen and validated; unknown keys are errors, and so are numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


def is_url(given: str) -> bool:
    """Whether what is given is meant as a server's address."""
    return "://" in given


def with_weights(given: str, flag: str) -> str:
    """A model's name as it is given. Raises InputError for a server, which doesn't show its weights."""
    if is_url(given):
        raise InputError(f"{flag} is a server's URL, but the weights themselves are needed: give a folder, a Hub id or a short name")
    return given


def server_url(given: str, flag: str) -> str:
    """A server's base URL without a slash at its end. Raises InputError, in which nothing secret is repeated."""
    try:
        parts = urlsplit(given.strip())
        whole = parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that doesn't close
        whole = False
    if not whole:
        raise InputError(f"{flag}: not the URL of a server; it looks like http://host:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InputError(f"{flag}: give the server's bare base URL; a key belongs in the environment (ABLITERATE_API_KEY)")
    return f"{parts.scheme.lower()}://{parts.netloc}{parts.path.rstrip('/')}"
