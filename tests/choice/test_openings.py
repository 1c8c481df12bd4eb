"""Which opening each baseline prompt is tried with."""

from __future__ import annotations

from abliterate.choice.openings import Openings, dealt
from abliterate.prompts import Prompt

TARGET = [Prompt("t1", "a", "en"), Prompt("t2", "b", "zh"), Prompt("t3", "c", "en"), Prompt("t4", "d", "zh")]
OWN = Openings([[1], [2], [3]], [[10], [20], [30]], [0, 1, 2], 4)


def test_a_baseline_prompt_gets_the_opening_of_its_twin() -> None:
    assert dealt(OWN, TARGET, [Prompt("b3", "x", "en", pair="t3"), Prompt("b2", "y", "zh", pair="t2")]) == [[30], [20]]


def test_without_a_withheld_twin_it_gets_one_in_its_language() -> None:
    assert dealt(OWN, TARGET, [Prompt("b4", "x", "zh", pair="t4"), Prompt("n", "y", "zh")]) == [[20], [20]]


def test_a_language_without_openings_gets_any() -> None:
    assert dealt(OWN, TARGET, [Prompt("f", "x", "fr"), Prompt("g", "y", "fr")]) == [[10], [20]]
