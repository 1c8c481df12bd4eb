"""Which of the known languages a text is in."""

from __future__ import annotations

from abliterate.prompts.languages.recognition import count_of_letters, language_of
from abliterate.prompts.languages.record import language
from abliterate.prompts.languages.tokens import expected_tokens


def test_language_is_chinese_from_a_fifth_of_the_letters() -> None:
    assert language_of("解释 TLS").code == "zh"
    assert language_of("What does 道 mean in the Tao Te Ching?").code == "en"
    assert language_of("1989?").code == language_of("").code == "en"


def test_only_the_letters_of_the_language_are_counted() -> None:
    assert count_of_letters(language("zh"), "解释 TLS，四") == 3
    assert count_of_letters(language("en"), "解释 tls") == 3


def test_a_chinese_character_needs_more_tokens_than_a_latin_letter_in_any_text() -> None:
    assert expected_tokens("四" * 8, "zh") == expected_tokens("四" * 8, "en") == 6
    assert expected_tokens("abcdefg" * 6, "zh") == expected_tokens("abcdefg" * 6, "en") == 10
    assert expected_tokens("四" * 8 + "abcdefg" * 6, "fr") == 16
