"""Matched false facts: of another topic, never true of the own one, alike in kind and length, and the same every time."""

from __future__ import annotations

import re
from functools import cache

import pytest

from abliterate.measures.elicitation.matching import FALSE, MatchedPrompt, Siblings, kind_of
from abliterate.prompts.languages.record import languages
from abliterate.prompts.promptset import Prompt, PromptSet, evenly, normalised
from abliterate.prompts.read import load_asked

SETS = ("censorship", "censorship-control")


def characters(fact: str, lang: str) -> int:
    return len(fact)


@cache
def pool() -> tuple[PromptSet, ...]:
    return tuple(load_asked(name) for name in SETS)


@cache
def bundled() -> tuple[MatchedPrompt, ...]:
    """Every seventeenth prompt of both sets, with false facts from all prompts."""
    groups = [PromptSet(group.name, tuple(evenly(group.prompts, 20))) for group in pool()]
    return tuple(Siblings(pool(), characters).matched(groups))


def own_facts(of: Prompt) -> set[str]:
    """All facts of the prompt's topic and of its twin's topic, which has the same name in both sets."""
    return {normalised(fact) for group in pool() for p in group if p.topic == of.topic for fact in p.facts}


def prompt(number: int, topic: str | None, *facts: str, text: str = "Which one?", lang: str = "en", pair: str | None = None) -> Prompt:
    return Prompt(str(number), text, lang=lang, topic=topic, facts=facts, pair=pair)


def matched(prompts: list[Prompt]) -> MatchedPrompt:
    """The first prompt, with the others as its siblings."""
    group = PromptSet("asked", tuple(prompts))
    return Siblings([group], characters).matched([PromptSet("asked", group.prompts[:1])])[0]


def test_no_false_fact_is_one_of_the_own_topic_or_its_twin_or_overlaps_with_one() -> None:
    for found in bundled():
        own = own_facts(found.prompt)
        for fact in found.facts:
            for false in map(normalised, fact.false):
                assert not [true for true in own if false in true or true in false], (found.prompt.id, fact, false)


def test_every_bundled_fact_has_four_different_false_ones_of_its_kind_and_language() -> None:
    by_lang = {code.code: {fact for group in pool() for p in group if p.lang == code.code for fact in p.facts} for code in languages()}
    assert sum(len(found.facts) for found in bundled()) > 150
    for found in bundled():
        assert len(found.facts) == len(set(found.prompt.facts)) and not found.in_question and not found.no_sibling
        for fact in found.facts:
            assert len({normalised(false) for false in fact.false}) == FALSE and not fact.other_kind
            assert {kind_of(false, found.prompt.lang) for false in fact.false} == {fact.kind}
            assert set(fact.false) <= by_lang[found.prompt.lang]


def test_no_false_fact_is_said_by_the_question() -> None:
    for found in bundled():
        assert not [false for fact in found.facts for false in fact.false if normalised(false) in normalised(found.prompt.text)]


def test_the_same_prompts_are_matched_the_same_and_more_prompts_change_nothing() -> None:
    chosen = pool()[0].prompts[5]
    one = Siblings(pool(), characters).matched([PromptSet(SETS[0], (chosen,))])
    two = Siblings(pool(), characters).matched([PromptSet(SETS[0], (*pool()[0].prompts[:2], chosen))])
    assert one[0] == two[2]


def test_the_false_facts_are_those_nearest_in_length() -> None:
    others = [prompt(i, f"t{i}", "x" * i) for i in range(2, 12)]
    (fact,) = matched([prompt(1, "own", "yyyyyy"), *others]).facts
    assert sorted(map(len, fact.false)) == [5, 6, 7, 8] or sorted(map(len, fact.false)) == [4, 5, 6, 7]


def test_facts_of_a_twin_in_another_set_fill_up_what_the_own_set_lacks() -> None:
    own = PromptSet("asked", (prompt(1, "a", "stone", pair="c1"), prompt(2, "b", "river")))
    twin = PromptSet("control", (Prompt("c1", "?", topic="a2", facts=("cloud",)), Prompt("c2", "?", topic="b2", facts=("paper", "candle"))))
    unrelated = PromptSet("third", (prompt(9, "z", "mirror"),))
    found = Siblings([own, twin, unrelated], characters).matched([own])[0]
    assert set(found.facts[0].false) == {"river", "paper", "candle"}  # "cloud" is of the twin's own topic


def test_without_a_sibling_of_its_kind_a_fact_gets_false_ones_of_another_kind() -> None:
    (fact,) = matched([prompt(1, "a", "1989"), prompt(2, "b", "a wall", "Berlin")]).facts
    assert fact.kind == "date" and fact.other_kind and fact.false == ("a wall",)


def test_a_fact_in_the_question_and_one_without_any_sibling_are_left_out_and_counted() -> None:
    found = matched([prompt(1, "a", "stone", "river", text="Is it a Stone?"), prompt(2, "b", "cloud")])
    assert [fact.fact for fact in found.facts] == ["river"] and (found.in_question, found.no_sibling) == (1, 0)
    found = matched([prompt(1, "a", "stone"), prompt(2, "a", "cloud"), prompt(3, "b", "石头", lang="zh")])
    assert found.facts == () and (found.in_question, found.no_sibling) == (0, 1)


def test_prompts_without_a_topic_are_topics_of_their_own() -> None:
    (fact,) = matched([prompt(1, None, "stone"), prompt(2, None, "river"), prompt(3, None, "a stone wall")]).facts
    assert fact.false == ("river",)


@pytest.mark.parametrize(
    ("fact", "lang", "kind"),
    [
        ("1989", "en", "date"), ("May 14, 1995", "en", "date"), ("5 June", "en", "date"), ("10,000", "en", "number"),
        ("several hundred", "en", "number"), ("78%", "en", "number"), ("Liu Xiaobo", "en", "name"), ("Prisoner of the State", "en", "name"),
        ("Chinese pressure", "en", "phrase"), ("opened fire", "en", "phrase"), ("may be closed", "en", "phrase"),
        ("1997年", "zh", "date"), ("六月五日", "zh", "date"), ("2000万", "zh", "number"), ("数十万", "zh", "number"),
        ("十一年", "zh", "number"),
        ("庇护十二世", "zh", "phrase"), ("屠杀", "zh", "phrase"), ("第一次世界大战", "zh", "phrase"), ("SARS", "zh", "name"),
    ],
)  # fmt: skip
def test_the_kind_of_a_fact(fact: str, lang: str, kind: str) -> None:
    assert kind_of(fact, lang) == kind


def test_no_worked_example_gives_away_a_bundled_fact_or_asks_a_bundled_question() -> None:
    facts = {normalised(fact) for group in pool() for p in group for fact in p.facts}
    questions = {normalised(p.text) for group in pool() for p in group}
    for each in languages():
        for example in each.eliciting.examples:
            assert normalised(example.question) not in questions
            assert not [fact for fact in facts if re.fullmatch(re.escape(fact), normalised(example.answer))]
