"""A model's or a user's text as a page can show it: every character visible or harmless, none with a meaning of its own."""

from __future__ import annotations

import re

_SYMBOLS = {**{code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)}, 0x7F: 0x2421}  # ␀ … ␟, ␡
_NOT_TEXT = re.compile("[\x80-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


def shown(text: str) -> str:
    """The text with control characters as their symbols (NUL as ␀), and what is no character (half a surrogate pair) as �.

    Marks of writing direction stay: the page isolates every text, so none reaches beyond its own.
    """
    if text.isprintable():
        return text
    return _NOT_TEXT.sub("\ufffd", text.replace("\r\n", "\n").translate(_SYMBOLS))


def language(tag: str) -> str | None:
    """A language's tag as ``lang=`` may say it, None where it is none."""
    return tag if _LANGUAGE.fullmatch(tag) else None
