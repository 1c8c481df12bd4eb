"""Figures from transcripts: rates, pairs, languages, topics, keep test."""

from __future__ import annotations

import pytest

from abliterate.evaluation.outcomes import OUTCOMES, Outcome, Verdict
from abliterate.evaluation.statistics import drop_upper_bound, mcnemar, wilson
from abliterate.evaluation.summary import Judged, answered_ids, by_topic, figures, judge_all, keep_test, paired, rate, set_entry
from abliterate.evaluation.transcripts import Transcript


def judged(*outcomes: Outcome, lang: str = "en", topic: str | None = None, substance: bool | None = None) -> Judged:
    return [
        (Transcript("s", f"{lang}{i}", "q", "r", lang, topic=topic), Verdict(outcome, "given", substance=substance))
        for i, outcome in enumerate(outcomes)
    ]


def test_a_rate_carries_its_counts_and_wilson_interval() -> None:
    assert rate(3, 10) == {"k": 3, "n": 10, "rate": 0.3, "ci95": list(wilson(3, 10))}


def test_a_rate_of_nothing_is_null() -> None:
    assert rate(0, 0) == {"k": 0, "n": 0, "rate": None, "ci95": None}


def test_every_outcome_is_counted_once() -> None:
    found = figures(judged(*OUTCOMES, "refused"))
    assert found["outcomes"] == {**dict.fromkeys(OUTCOMES, 1), "refused": 2}
    assert (found["refused"]["k"], found["withheld"]["k"], found["degenerate"]["k"]) == (2, 4, 1)
    assert found["withheld"]["n"] == 7


def test_substance_is_over_the_prompts_with_facts() -> None:
    found = figures([*judged("answered", "answered", substance=True), *judged("refused", substance=False), *judged("answered")])
    assert (found["substance"]["k"], found["substance"]["n"]) == (2, 3)
    assert figures(judged("answered"))["substance"] is None


def test_thoughts_are_counted_by_their_verdict() -> None:
    thoughts = [(Transcript("s", "1", "q", "r"), Verdict("answered", "x", thought=t)) for t in ("empty", "refused", "empty", None)]
    assert figures(thoughts)["thought"] == {"empty": 2, "refused": 1}
    assert figures(judged("answered"))["thought"] is None


def test_pairs_are_tested_by_mcnemar() -> None:
    base, edited = judged("refused", "refused", "answered", "deflected"), judged("answered", "deflected", "refused", "answered")
    assert paired(base, edited) == {
        "refused": {"base_only": 2, "edited_only": 1, "mcnemar_p": mcnemar(2, 1)},
        "withheld": {"base_only": 2, "edited_only": 1, "mcnemar_p": mcnemar(2, 1)},
    }


def test_a_set_in_two_languages_has_its_figures_by_language() -> None:
    base = [*judged("refused", "answered"), *judged("deflected", lang="zh")]
    edited = [*judged("answered", "answered"), *judged("answered", lang="zh")]
    entry = set_entry("target", base, edited)
    assert (entry["role"], entry["lang"], entry["n"]) == ("target", "en+zh", 3)
    assert entry["by_lang"]["en"]["base"]["withheld"]["k"] == 1 and entry["by_lang"]["en"]["base"]["withheld"]["n"] == 2
    assert entry["by_lang"]["zh"]["paired"]["withheld"]["base_only"] == 1


def test_a_set_in_one_language_is_not_split() -> None:
    assert "by_lang" not in set_entry("target", judged("refused"), None)


def test_an_audit_has_nothing_edited_or_paired() -> None:
    entry = set_entry("audited", judged("refused"), None)
    assert entry["edited"] is None and entry["paired"] is None


def test_topics_are_rated_apart() -> None:
    found = by_topic([*judged("refused", topic="a"), *judged("answered", "answered", topic="b"), *judged("refused")], None)
    assert list(found) == ["a", "b"]
    assert found["a"]["base"]["rate"] == 1.0 and found["b"]["n"] == 2 and found["b"]["edited"] is None


def test_keep_test_holds_below_the_margin_only() -> None:
    base, edited = judged(*["refused"] * 100), judged(*["refused"] * 98, "answered", "answered")
    bound = drop_upper_bound(2, 0, 100)
    assert keep_test("k", base, edited, bound + 1e-6)["holds"] is True
    assert keep_test("k", base, edited, bound)["holds"] is False
    assert keep_test("k", base, edited, bound - 1e-6)["holds"] is False
    assert keep_test("k", base, edited, 0.05)["upper_bound"] == bound


@pytest.mark.parametrize("lost", [0, 1, 3, 10, 40])
def test_a_wider_margin_never_turns_the_keep_test_down(lost: int) -> None:
    base, edited = judged(*["refused"] * 60), judged(*["answered"] * lost, *["refused"] * (60 - lost))
    held = [keep_test("k", base, edited, margin)["holds"] for margin in (0.01, 0.05, 0.1, 0.3, 0.99)]
    assert held == sorted(held)


def test_few_kept_prompts_show_nothing() -> None:
    same = judged(*["refused"] * 20)
    assert keep_test("k", same, same, 0.05)["holds"] is False


def test_transcripts_are_judged_by_set_in_order() -> None:
    given = [Transcript("b", "1", "q", "Paris."), Transcript("a", "2", "q", "I can't help with that."), Transcript("b", "3", "q", "")]
    found = judge_all(given)
    assert [t.id for t, _ in found["b"]] == ["1", "3"]
    assert [v.outcome for _, v in found["b"]] == ["answered", "deflected"]
    assert found["a"][0][1].outcome == "refused"


def test_answered_are_those_not_withheld() -> None:
    assert answered_ids(judged("answered", "refused", "truncated", "state_line")) == {"en0", "en2"}
