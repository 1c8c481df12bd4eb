"""Recognise which of the known languages a text is in."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

from abliterate.prompts.languages.record import Language, languages

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def language_of(text: str) -> Language:
    """The language that enough of the text's letters belong to; else the one with most of the text's small words; else the default."""
    for language in languages():
        least = language.recognition.text
        if least is not None and (own := count_of_letters(language, text)) and 0 < least * sum(map(str.isalpha, text)) <= own:
            return language
    return _by_words(text)


def count_of_letters(language: Language, text: str) -> int:
    """How many letters of the language a text has."""
    return len(letters_pattern(language).findall(text))


def letters_pattern(language: Language) -> re.Pattern[str]:
    """One letter of the language."""
    return re.compile(f"[{language.writing.letters}]")  # which Python keeps


def _by_words(text: str) -> Language:
    """The language with most of the words that no other language has among its small ones."""
    evidence = _evidence()
    if len(evidence) == 1:  # nothing to choose from
        return evidence[0][0]
    said = Counter(_WORD.findall(text.replace("’", "'").casefold()))
    return max(evidence, key=lambda each: sum(count for word, count in said.items() if word in each[1]))[0]


@cache
def _evidence() -> tuple[tuple[Language, frozenset[str]], ...]:
    """The languages that are told by small words, each with those that it alone has."""
    told = [language for language in languages() if language.recognition.text is None]
    words = {language.code: language.recognition.small_words for language in told}
    others = {code: frozenset().union(*(theirs for other, theirs in words.items() if other != code)) for code in words}
    return tuple((language, words[language.code] - others[language.code]) for language in told)
