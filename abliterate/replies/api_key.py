"""The API key of a server: read from the environment, sent only to that server, never written to a file."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from abliterate.errors import InputError

OWN, OPENAI = "ABLITERATE_API_KEY", "OPENAI_API_KEY"
_OPENAI_HOST = "api.openai.com"
_LEAST = 16  # shortest key that is also masked in replies; shorter keys (EMPTY, ollama) are words that a reply may contain
HIDDEN = "***"


def key_for(url: str) -> str | None:
    """The key for the server at ``url``: $ABLITERATE_API_KEY, else $OPENAI_API_KEY if the host is OpenAI's (no other host gets it).

    None if no key is set. Raises InputError if an HTTP header can't carry the key.
    """
    name = next((name for name in (OWN, OPENAI) if _given(name) and (name == OWN or _is_openai(url))), None)
    if name is None:
        return None
    if not ((key := _given(name)).isascii() and key.isprintable()):
        raise InputError(f"{name} contains characters that an HTTP header can't carry; set it to printable ASCII")
    return key


def how_to_give(url: str) -> str:
    """What to do if the server at ``url`` rejects the key."""
    kept_back = bool(_given(OPENAI)) and not _given(OWN) and not _is_openai(url)
    return f"set {OWN} to the server's key" + (f" ({OPENAI} is sent only to {_OPENAI_HOST})" if kept_back else "")


def without_key(body: bytes, key: str | None) -> bytes:
    """A server's reply with the key masked, in case the server repeats it: replies end up in transcripts and reports."""
    return body.replace(key.encode(), HIDDEN.encode()) if key is not None and len(key) >= _LEAST else body


def _given(name: str) -> str:
    return os.environ.get(name, "").strip()


def _is_openai(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" and parts.hostname == _OPENAI_HOST and parts.port in (None, 443)
