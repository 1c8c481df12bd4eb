"""One plain spelling of a text, and its sentences."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.outcomes.normalise import plain, sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I’m **sorry**", "i'm sorry"),
        ("“Ｈｅｌｌｏ”", '"hello"'),
        ("# Title\n> quote", "title\nquote"),
        ("- a\n* b\n1. c\n2) d", "a\nb\nc\nd"),
        ("a\u00a0\t b", "a b"),
        ("`code` and _emphasis_", "code and emphasis"),
    ],
)
def test_plain_is_lower_case_without_marks(text: str, expected: str) -> None:
    assert plain(text) == expected


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="aZé’“”`*#_~ \n中Ａ.!", max_size=40))
def test_plain_of_plain_text_is_itself(text: str) -> None:
    assert plain(plain(text)) == plain(text)


def test_sentences_end_at_the_marks_of_both_scripts() -> None:
    assert sentences("one. two! 三。四？\nfive") == ["one.", "two!", "三。", "四？", "five"]


def test_a_decimal_point_ends_no_sentence() -> None:
    assert sentences("about 3.5 litres") == ["about 3.5 litres"]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_sentences_lose_nothing_but_white_space(text: str) -> None:
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_plain_chinese_text_still_falls_into_its_sentences() -> None:
    assert len(sentences(plain("一！二？三。四"))) == 4
