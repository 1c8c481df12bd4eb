"""The detector and the worth of answers against replies of three real models, labelled by two readers blind to each other.

No prompt is in both halves, and the test half holds a model that the train half lacks; it was not looked at while rules and weights were
made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from test_outcomes_labelled import kappa, rows_of

from abliterate.outcomes.records import WITHHELD
from abliterate.outcomes.verdict import Verdict, judge

ROWS = rows_of("outcomes_models.jsonl")
TEST = [row for row in ROWS if row["split"] == "test"]
Judged = list[tuple[dict[str, Any], Verdict]]


@pytest.fixture(scope="module")
def judged() -> Judged:
    """Each row of the test half with its verdict."""
    return [
        (row, judge(row["response"], row.get("facts", ()), prompt=row["prompt"], cut=row["cut"], official=row.get("official")))
        for row in TEST
    ]


def share(judged: Judged, of_label: Callable[[str], bool]) -> float:
    return sum(of_label(row["outcome"]) == of_label(verdict.outcome) for row, verdict in judged) / len(judged)


def withheld(outcome: str) -> bool:
    return outcome in WITHHELD


def broken(outcome: str) -> bool:
    return outcome == "degenerate"


def test_the_halves_share_no_prompt_and_the_test_half_holds_a_model_of_its_own() -> None:
    train = [row for row in ROWS if row["split"] == "train"]
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in TEST}
    assert {row["model"] for row in TEST} - {row["model"] for row in train} == {"Qwen2.5-Coder-1.5B-Instruct"}
    assert len({row["model"] for row in ROWS}) == 3 and {row["edited"] for row in ROWS} == {True, False}


def test_two_blind_readers_agree_on_outcome_and_worth() -> None:
    assert kappa([(row["outcome"], row["second"]["outcome"]) for row in ROWS]) >= 0.9
    both = [(row["worth"], row["second"]["worth"]) for row in ROWS if "worth" in row and "worth" in row["second"]]
    assert len(both) > 200 and kappa(both) >= 0.8


def test_withheld_or_not(judged: Judged) -> None:
    assert share(judged, withheld) >= 0.95
    for model in {row["model"] for row in TEST}:
        assert share([(row, verdict) for row, verdict in judged if row["model"] == model], withheld) >= 0.92


@pytest.mark.parametrize(("lang", "least"), [("en", 0.95), ("zh", 0.94)])
def test_broken_or_not_in_both_languages(judged: Judged, lang: str, least: float) -> None:
    assert share([(row, verdict) for row, verdict in judged if row["lang"] == lang], broken) >= least


def test_invented_or_not_where_facts_are_known(judged: Judged) -> None:
    told = [(row["worth"] == "invented") == (v.worth == "invented") for row, v in judged if "worth" in row and v.worth is not None]
    assert len(told) > 150 and sum(told) / len(told) >= 0.85


def test_only_an_answer_to_a_prompt_with_facts_has_a_worth_and_only_a_steered_one_a_grade(judged: Judged) -> None:
    for row, verdict in judged:
        assert (verdict.worth is not None) == (verdict.outcome == "answered" and bool(row.get("facts")))
        assert (verdict.grade is not None) == (verdict.worth == "steered")
        assert (verdict.hedged is not None) == (verdict.outcome == "answered" and not row.get("facts"))
