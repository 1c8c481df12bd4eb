"""Make a model's or a user's text safe to show on a page: every character is visible or harmless."""

from __future__ import annotations

import re

_SYMBOLS = {**{code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)}, 0x7F: 0x2421}  # ␀ … ␟, ␡
_NOT_TEXT = re.compile("[\x80-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


def shown(text: str) -> str:
    """The text with control characters as their symbols (NUL as ␀), and non-characters (half a surrogate pair) as �.

    Marks of writing direction stay: the page isolates every text, so they don't affect other texts.
    """
    if text.isprintable():
        return text
    return _NOT_TEXT.sub("\ufffd", text.replace("\r\n", "\n").translate(_SYMBOLS))


def language(tag: str) -> str | None:
    """The tag if it is valid for ``lang=``, else None."""
    return tag if _LANGUAGE.fullmatch(tag) else None
