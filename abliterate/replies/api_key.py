"""The key to a server: read from the environment, sent to the server that it is for and to nobody else, written nowhere."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from abliterate.errors import InputError

OWN, OPENAI = "ABLITERATE_API_KEY", "OPENAI_API_KEY"
_OPENAI_HOST = "api.openai.com"
_LEAST = 16  # characters of a key that is taken out of replies too; shorter ones (EMPTY, ollama) are words that a reply may hold
HIDDEN = "***"


def key_for(url: str) -> str | None:
    """The key that is sent to the server at ``url``: $ABLITERATE_API_KEY, or on OpenAI's own host $OPENAI_API_KEY, which is for no other.

    Raises InputError where no request can carry it.
    """
    name = next((name for name in (OWN, OPENAI) if _given(name) and (name == OWN or _is_openai(url))), None)
    if name is None:
        return None
    if not ((key := _given(name)).isascii() and key.isprintable()):
        raise InputError(f"{name} holds characters that no request can carry")
    return key


def how_to_give(url: str) -> str:
    """What to do where the server at ``url`` wants another key."""
    kept_back = bool(_given(OPENAI)) and not _given(OWN) and not _is_openai(url)
    return f"set {OWN} to the server's key" + (f" ({OPENAI} goes to {_OPENAI_HOST} alone)" if kept_back else "")


def without_key(body: bytes, key: str | None) -> bytes:
    """A server's reply in which the key doesn't stand, should the server repeat it: replies land in transcripts and reports."""
    return body.replace(key.encode(), HIDDEN.encode()) if key is not None and len(key) >= _LEAST else body


def _given(name: str) -> str:
    return os.environ.get(name, "").strip()


def _is_openai(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" and parts.hostname == _OPENAI_HOST and parts.port in (None, 443)
