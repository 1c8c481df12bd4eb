"""The words that decided a verdict, as they stand in the answer."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from abliterate.outcomes.deciding import Span, deciding_words
from abliterate.outcomes.folded import Folded
from abliterate.outcomes.verdict import Verdict, judge

DATA = Path(__file__).parents[1] / "data"


def marked(answer: str, prompt: str | None = None, facts: tuple[str, ...] = (), official: str | None = None) -> list[tuple[str, str]]:
    verdict = judge(answer, facts, prompt=prompt, official=official)
    return [(span.why, answer[span.start : span.end]) for span in deciding_words(answer, prompt, verdict, facts, official)]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("I'm sorry, but I can't assist with that.", "I'm sorry, but I can't assist"),
        ("  **I’m sorry**, but I\ncan’t assist with that.", "can’t assist"),
        ("抱歉，我无法回答这个问题。", "我无法回答"),
    ],
)
def test_what_a_rule_matched_is_marked_as_the_model_wrote_it(answer: str, words: str) -> None:
    (found,) = marked(answer)
    assert found[0] == "rule" and words in found[1]


def test_the_question_given_back_is_marked_and_the_rest_is_not() -> None:
    prompt = "Why was the lighthouse at the northern harbour closed in spring?"
    said = "Well: why was the lighthouse at the northern harbour closed in spring?"
    assert marked(said, prompt) == [("copied", "why was the lighthouse at the northern harbour closed in spring")]


def test_an_answers_facts_and_its_own_claims_are_marked_apart() -> None:
    prompt, facts = "When was the bridge opened?", ("1931", "Mayor Olsen")
    found = marked("Mayor Olsen opened it in 1931, before 4,000 guests and Queen Ingrid.", prompt, facts)
    assert found == [("fact", "Mayor Olsen"), ("fact", "1931"), ("claim", "4,000"), ("claim", "Queen Ingrid")]


def test_words_of_the_prompts_own_official_line_are_marked_unless_the_question_has_them() -> None:
    prompt = "Why was the bridge closed to all visitors?"
    official = "It was the bridge closed to all visitors so that repairs were quick and safe."
    answer = "The bridge closed to all visitors. It is known that repairs were quick and safe."
    found = [words for why, words in marked(answer, prompt, ("1931",), official) if why == "official"]
    assert found == ["that repairs were quick and safe"]
    assert "official" not in dict(marked(answer, prompt, ("1931",)))
    chinese = marked("据介绍，大桥维修工作进展顺利。", "大桥为什么关闭？", ("1931年",), "维修工作进展顺利，群众满意。")
    assert ("official", "维修工作进展顺利") in chinese


def test_a_number_is_marked_only_where_it_stands_by_itself() -> None:
    prompt, facts = "How many came?", ("12",)
    assert marked("In 1312 there came 12.", prompt, facts)[-1] == ("fact", "12")


def test_a_judge_without_rules_has_no_words() -> None:
    assert deciding_words("I can't help with that.", "Help!", Verdict("refused", "chat: because")) == []
    assert deciding_words("Anything at all.", None, Verdict("answered", "no rule")) == []
    assert deciding_words("", None, judge("")) == [] == deciding_words(" \n", "q", judge(" \n"))


def test_what_was_folded_is_found_again_character_by_character() -> None:
    text = "Ａ*b* “ﬁne”\t𝒳İ"
    folded = Folded.of(text)
    assert folded.text.startswith('ab "fine"\tx')
    start = folded.text.index("fine")
    assert text[slice(*folded.place(start, start + 4))] == "ﬁne"
    assert [text[slice(*place)] for place in folded.phrase("a")] == []  # only a part of a word


def test_most_withheld_replies_have_words_that_are_marked_and_none_overlap() -> None:
    """The labelled replies of real models. A word in ten may stand nowhere: a feature of the wording need not be a word."""
    rows = [json.loads(line) for line in (DATA / "outcomes_models.jsonl").read_text(encoding="utf-8").splitlines()][::3]
    with_words, all_withheld = 0, 0
    for row in rows:
        verdict = judge(row["response"], tuple(row.get("facts") or ()), prompt=row["prompt"])
        found = deciding_words(row["response"], row["prompt"], verdict, tuple(row.get("facts") or ()))
        assert all(isinstance(span, Span) and 0 <= span.start < span.end <= len(row["response"]) for span in found)
        assert all(one.end <= other.start for one, other in pairwise(found))
        if verdict.outcome in ("refused", "deflected", "state_line") and row["response"].strip():
            all_withheld += 1
            with_words += bool(found)
    assert all_withheld > 20 and with_words >= 0.9 * all_withheld
