"""Normalise an answer for the detector: one form of quotes, no markdown."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from abliterate.prompts.languages.record import languages

_QUOTES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "`": "", "*": "", "#": "", "_": "", "~": ""})
_MARKS = re.compile(r"(?m)^\s*(?:[>•\-]\s+|\d+[.)]\s+)")
_CODE = re.compile(r"(?s)```.*?(?:```|\Z)")
_QUOTED = re.compile(r"“[^”\n]{1,400}”|\"[^\"\n]{1,400}\"|「[^」\n]{1,400}」|«[^»\n]{1,400}»")


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
    return _drawn().sub("!", bare if any(c.isalnum() for c in bare) else answer)


def sentences(text: str) -> list[str]:
    """The sentences of a plain text in any of the languages."""
    return [part.strip() for part in _between_sentences().split(text) if part.strip()]


def letters_of(spaced: bool) -> str:
    """The letters of the languages with spaces between their words, or of those without, for a regular expression's brackets."""
    return "".join(language.writing.letters for language in languages() if language.writing.is_spaced is spaced)


def ends() -> str:
    """The marks that end a sentence in any language, for a regular expression's brackets."""
    return re.escape("".join(language.writing.ends for language in languages()))


@cache
def _drawn() -> re.Pattern[str]:
    """A drawn-out sentence ending."""
    return re.compile(f"(?<=[{letters_of(spaced=False)}])[～~]+")


@cache
def _between_sentences() -> re.Pattern[str]:
    """Where one sentence ends and the next begins. Where words have no spaces, neither have sentences; but a mark that in plain text is the
    same as one of the other languages ends a sentence only before a letter."""
    spaced, unspaced = (
        "".join(language.writing.ends for language in languages() if language.writing.is_spaced is kind) for kind in (True, False)
    )
    own = re.escape("".join(mark for mark in unspaced if mark not in spaced))
    alike = re.escape("".join(mark for mark in unicodedata.normalize("NFKC", unspaced) if mark in spaced))
    return re.compile(rf"(?<=[{ends()}])\s+|(?<=[{own}])|(?<=[{alike}])(?=[{letters_of(spaced=False)}])|\n+")
