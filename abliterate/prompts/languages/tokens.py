"""About how many tokens a text has, for a forecast without the model's own tokenizer."""

from __future__ import annotations

from abliterate.prompts.languages.recognition import count_of_letters
from abliterate.prompts.languages.record import Language, language, languages


def expected_tokens(text: str, lang: str) -> float:
    """Tokens of a text in a large vocabulary. The letters of a language that is told by them count at its rate, in any text; all else at
    the rate of the text's own language, or of the default one."""
    rest, tokens = len(text), 0.0
    for each in _told_by_letters():
        own = count_of_letters(each, text)
        rest, tokens = rest - own, tokens + _rate(each, own)
    own_language = language(lang)
    return tokens + _rate(own_language if own_language.recognition.text is None else languages()[0], rest)


def _told_by_letters() -> list[Language]:
    return [each for each in languages() if each.recognition.text is not None]


def _rate(of: Language, characters: int) -> float:
    return of.planning.tokens * characters / of.planning.characters
