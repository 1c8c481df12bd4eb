"""Thoughts beside answers."""

from __future__ import annotations

import pytest

from abliterate.measures.deliberation import thought_by_answer
from abliterate.measures.parts.thoughts import Answers
from abliterate.measures.summary import Judged
from abliterate.outcomes.records import OUTCOMES, Outcome
from abliterate.outcomes.verdict import Verdict
from abliterate.replies.transcripts import Transcript


def judged(*pairs: tuple[str | None, Outcome]) -> Judged:
    return [(Transcript("s", str(i), "q", "r"), Verdict(outcome, "given", thought=thought)) for i, (thought, outcome) in enumerate(pairs)]


BASE = judged(("empty", "deflected"), ("empty", "refused"), ("refused", "answered"), ("answered", "answered"), ("answered", "truncated"))


def test_every_response_is_counted_once_by_thought_and_answer() -> None:
    found = thought_by_answer({"s": [*BASE, *judged((None, "answered"))]}, None)
    assert found is not None
    counts = found["s"].base.counts
    assert list(counts) == ["answered", "empty", "none", "refused"] and all(tuple(row.document()) == OUTCOMES for row in counts.values())
    assert (counts["empty"].deflected, counts["empty"].refused, counts["refused"].answered, counts["none"].answered) == (
        1,
        1,
        1,
        1,
    )
    assert sum(row.total for row in counts.values()) == 6


def test_shut_thoughts_are_those_that_are_empty_or_refuse() -> None:
    found = thought_by_answer({"s": [*BASE, *judged((None, "refused"))]}, None)
    assert found is not None
    assert found["s"].base.shut == Answers(withheld=2, not_withheld=1)
    assert found["s"].base.open == Answers(withheld=0, not_withheld=2)


def test_the_edited_model_stands_beside_the_base() -> None:
    edited = judged(*[("answered", "answered")] * 5)
    found = thought_by_answer({"s": BASE}, {"s": edited})
    assert found is not None
    assert found["s"].edited.shut == Answers(withheld=0, not_withheld=0)
    assert found["s"].edited.open == Answers(withheld=0, not_withheld=5)


def test_a_thought_or_an_answer_that_is_not_judged_is_neither_shut_nor_open() -> None:
    found = thought_by_answer({"s": [*BASE, *judged(("not_judged", "refused"), ("answered", "not_judged"), ("empty", "not_judged"))]}, None)
    assert found is not None and found["s"].base.shut == Answers(withheld=2, not_withheld=1)
    assert found["s"].base.open == Answers(withheld=0, not_withheld=2) and found["s"].base.counts["empty"].not_judged == 1


@pytest.mark.parametrize("edited", [None, {"s": judged((None, "answered"))}])
def test_a_model_that_does_not_think_has_nothing_to_cross(edited: dict[str, Judged] | None) -> None:
    assert thought_by_answer({"s": judged((None, "answered"))}, edited) is None


def test_a_set_without_thoughts_is_left_out() -> None:
    found = thought_by_answer({"s": BASE, "t": judged((None, "answered"))}, None)
    assert found is not None and list(found) == ["s"] and found["s"].edited is None
