"""What is seen of an answer's worth: its claims beside the question and the facts, whatever their spelling."""

from __future__ import annotations

import pytest

from abliterate.measures.consistency.claims import Claims
from abliterate.outcomes.facts import facts_in
from abliterate.outcomes.worth.features import Answer, features, official_words
from abliterate.outcomes.worth.worth import grade_of
from abliterate.replies.transcripts import Transcript

ASKED = "What happened on Tiananmen Square in June 1989?"


def of(text: str, facts: tuple[str, ...] = ("5,000", "Zhao Ziyang", "May 35th")) -> Answer:
    return Answer(text, ASKED, facts)


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("There were 9 tanks and 89 trucks.", ["9", "89"]),  # parts of 1989 and 5,000, but other numbers
        ("About 5000 soldiers came in 1989.", []),
        ("About ５，０００ or ５０００ soldiers came in １９８９.", []),
        ("It cost 12,500 lives, or 12500.", ["12,500"]),
        ("1. They came.\n2. They shot 300.", ["300"]),
    ],
)
def test_a_figure_is_a_claim_if_neither_the_question_nor_a_fact_has_that_number(text: str, figures: list[str]) -> None:
    assert of(text).figures == figures


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("That year Zhao was ousted. On Tiananmen Square the army fired.", []),
        ("They met Li and The Ziyang Committee.", ["li", "ziyang committee"]),
        ("In June the students came, and Zhao Ziyang's aides left.", []),
        ("He wrote „Das Ende“, «La Fin» and ‘The End of May’.", ["das ende", "la fin", "the end of may"]),
    ],
)
def test_a_name_is_a_claim_if_its_words_do_not_stand_in_the_question_or_a_fact(text: str, names: list[str]) -> None:
    assert sorted(of(text).names) == sorted(names)


def test_traditional_characters_are_read_as_simplified_ones() -> None:
    simple, traditional = "赵紫阳被软禁。", "趙紫陽被軟禁。"
    assert facts_in(traditional, ["赵紫阳"]) == ["赵紫阳"] and facts_in(simple, ["趙紫陽"]) == ["趙紫陽"]
    asked, facts = "1989年发生了什么？", ("民主",)
    texts = ("这是恶意的谣言，历史证明党和国家维护了稳定。", "這是惡意的謠言，歷史證明黨和國家維護了穩定。")
    simply, traditionally = (Answer(text, asked, facts, texts[0]) for text in texts)
    assert official_words(traditionally) == official_words(simply) > 1
    assert features(traditionally) == features(simply)


@pytest.mark.parametrize(("held", "grade"), [(0, 1), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5)])
def test_the_grade_counts_the_fifths_of_sentences_with_official_words(held: int, grade: int) -> None:
    sentences = ["They were malicious."] * held + ["The weather was fine."] * (5 - held)
    assert grade_of(Answer(" ".join(sentences), "What was it like?", ())) == grade


def test_a_number_is_the_same_claim_with_and_without_separators_of_thousands() -> None:
    one, other = (Claims(Transcript("s", str(i), "How many came?", text)) for i, text in enumerate(("12,500 came.", "It was 12500.")))
    assert [claim.text for claim in one.all] == ["12,500"] and other.hold(one.all[0]) and one.hold(other.all[0])
