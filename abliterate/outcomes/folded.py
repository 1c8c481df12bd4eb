"""A text as the rules read it, with the way back: which characters of the answer each normalised one stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from abliterate.outcomes.normalise import plain
from abliterate.outcomes.sentences import simplified

Place = tuple[int, int]  # where a stretch of a text begins and ends, in characters


@dataclass(frozen=True)
class Folded:
    """``text``: normalised as by ``plain``, except that white space and list marks stay. ``origin``: where each of its characters stands in
    the answer."""

    text: str
    origin: tuple[int, ...]

    @classmethod
    def of(cls, answer: str) -> Folded:
        if answer.isascii() and answer == plain(answer):
            return cls(answer, tuple(range(len(answer))))
        text: list[str] = []
        origin: list[int] = []
        for place, character in enumerate(answer):
            found = _folded(character)
            text.append(found)
            origin += [place] * len(found)
        return cls("".join(text), tuple(origin))

    def place(self, start: int, end: int) -> Place:
        """Where a stretch of the normalised text, with at least one character, stands in the answer."""
        return self.origin[start], self.origin[end - 1] + 1

    def matches(self, pattern: str) -> Iterator[Place]:
        """Where the normalised text matches, in the answer."""
        return (self.place(*found.span()) for found in re.finditer(pattern, self.text) if found[0].strip())

    def phrase(self, phrase: str) -> Iterator[Place]:
        """Where the words of a normalised phrase stand, as whole words if its letters are those of words with spaces between them."""
        words = [re.escape(word) for word in phrase.split()]
        return self.matches(edged(r"\s+".join(words), phrase)) if words else iter(())


@cache
def _folded(character: str) -> str:
    return character if character.isspace() else simplified(plain(character, marks=False))


def edged(pattern: str, phrase: str) -> str:
    """The pattern of a phrase, such that it matches no part of an ASCII word."""
    before = r"(?<![a-z0-9])" if re.match(r"[a-z0-9]", phrase) else ""
    after = r"(?![a-z0-9])" if re.search(r"[a-z0-9]$", phrase) else ""
    return f"{before}{pattern}{after}"
