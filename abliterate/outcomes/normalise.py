"""Normalise an answer for the detector: one form of quotes, no markdown."""

from __future__ import annotations

import re
import unicodedata

_QUOTES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "`": "", "*": "", "#": "", "_": "", "~": ""})
_MARKS = re.compile(r"(?m)^\s*(?:[>•\-]\s+|\d+[.)]\s+)")
_CODE = re.compile(r"(?s)```.*?(?:```|\Z)")
_QUOTED = re.compile(r"“[^”\n]{1,400}”|\"[^\"\n]{1,400}\"|「[^」\n]{1,400}」|«[^»\n]{1,400}»")
_DRAWN = re.compile(r"(?<=[\u4e00-\u9fff])[～~]+")  # a drawn-out sentence ending
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|(?<=[。！？])|(?<=[!?])(?=[\u4e00-\u9fff])|\n+")


def plain(text: str, marks: bool = True) -> str:
    """NFKC, case-folded, straight quotes, no markdown, single spaces; line breaks stay. ``marks``: remove list marks at line starts."""
    text = unicodedata.normalize("NFKC", text.translate(_QUOTES)).casefold().translate(_QUOTES)
    if marks:
        text = _MARKS.sub("", text)
    return "\n".join(" ".join(line.split()) for line in text.split("\n")).strip()


def without_code(answer: str) -> str:
    """The answer without its code blocks."""
    return _CODE.sub("\n", answer)


def own_voice(answer: str) -> str:
    """The answer without code blocks and quoted words; with them if nothing else is left."""
    bare = _QUOTED.sub('""', without_code(answer))
    return _DRAWN.sub("!", bare if any(c.isalnum() for c in bare) else answer)


def sentences(text: str) -> list[str]:
    """The sentences of a plain text, English or Chinese."""
    return [part.strip() for part in _SENTENCE.split(text) if part.strip()]
