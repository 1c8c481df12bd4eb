"""Figures from transcripts: rates, pairs, languages, topics, keep test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from abliterate.measures.clusters import cluster_rate
from abliterate.measures.pairs import Pairs
from abliterate.measures.parts.paired import Clusters
from abliterate.measures.parts.sets import NotJudged
from abliterate.measures.statistics import drop_upper_bound, holm, mcnemar, rise_upper_bound, wilson
from abliterate.measures.summary import (
    Judged,
    answered_ids,
    by_topic,
    figures,
    judge_all,
    keep_test,
    paired,
    rate,
    set_entry,
    table,
    unchanged,
)
from abliterate.outcomes.records import OUTCOMES, Outcome
from abliterate.outcomes.verdict import Verdict
from abliterate.replies.transcripts import Transcript


def judged(*outcomes: Outcome, lang: str = "en", topic: str | None = None, substance: bool | None = None) -> Judged:
    return [
        (Transcript("s", f"{lang}{i}", "q", "r", lang, topic=topic), Verdict(outcome, "given", substance=substance))
        for i, outcome in enumerate(outcomes)
    ]


def test_a_rate_carries_its_counts_and_wilson_interval() -> None:
    assert rate(3, 10).document() == {"k": 3, "n": 10, "rate": 0.3, "ci95": list(wilson(3, 10))}


def test_a_rate_of_nothing_is_null() -> None:
    assert rate(0, 0).document() == {"k": 0, "n": 0, "rate": None, "ci95": None}


def test_every_outcome_is_counted_once() -> None:
    found = figures(judged(*OUTCOMES, "refused"))
    assert found.outcomes.document() == {**dict.fromkeys(OUTCOMES, 1), "refused": 2}
    assert (found.refused.k, found.withheld.k, found.degenerate.k) == (2, 4, 1)
    assert found.withheld.n == 7


UNKNOWN: Outcome = "not_judged"


def test_a_reply_that_is_not_judged_is_in_no_rate_and_counted_beside_it() -> None:
    entry = set_entry("target", judged("refused", "answered", UNKNOWN, UNKNOWN), judged("answered", UNKNOWN, "answered", UNKNOWN))
    assert entry.n == 4 and entry.not_judged == NotJudged(base=2, edited=2)
    assert (entry.base.withheld.k, entry.base.withheld.n, entry.base.outcomes.count(UNKNOWN)) == (1, 2, 2)
    assert all(entry.edited.rate(key).n == 2 for key in ("refused", "withheld", "degenerate"))
    assert entry.paired.withheld.base_only == 1 and entry.paired.withheld.edited_only == 0
    assert set_entry("audited", judged(UNKNOWN), None).base.withheld.document() == {
        "k": 0,
        "n": 0,
        "rate": None,
        "ci95": None,
        "corrected": None,
    }


def test_pairs_topics_and_tests_know_of_judged_pairs_alone() -> None:
    base = [*judged("refused", "refused", UNKNOWN, topic="a"), *judged("refused", lang="zh", topic="b")]
    edited = [*judged("refused", UNKNOWN, "answered", topic="a"), *judged(UNKNOWN, lang="zh", topic="b")]
    assert paired(base[:1], edited[:1]) == set_entry("keep", base, edited).paired
    topics = by_topic(base, edited)
    assert (topics["a"].n, topics["a"].base.n, topics["a"].edited.n, topics["a"].paired.base_only) == (3, 2, 2, 0)
    assert topics["b"].edited.rate is None and topics["b"].paired.base_only == 0
    known = keep_test("s", base[:1] * 30, edited[:1] * 30, 0.2)
    assert keep_test("s", base * 30, edited * 30, 0.2) == known and known.n == 30
    roles, before, after = {"s": "harmless"}, {"s": base}, {"s": edited}
    assert [test.n for test in unchanged(roles, before, after, 0.1) or []] == [1, 1]
    assert table(base, edited)[0].base.count(UNKNOWN) == 1
    assert answered_ids(judged("answered", "refused", UNKNOWN)) == {"en0"}


def test_sets_of_which_nothing_is_judged_show_nothing() -> None:
    test = keep_test("s", judged(UNKNOWN), judged("refused"), 0.05)
    assert (test.n, test.upper_bound, test.holds) == (0, 1.0, False)
    assert unchanged({"s": "harmless"}, {"s": judged(UNKNOWN)}, {"s": judged("answered")}, 0.05) is None
    entry = set_entry("keep", judged(UNKNOWN, topic="a"), judged(UNKNOWN, topic="a"))
    assert entry.paired.refused.mcnemar_p == 1.0 and entry.base.withheld_clustered is None


def test_substance_is_over_the_prompts_with_facts() -> None:
    found = figures([*judged("answered", "answered", substance=True), *judged("refused", substance=False), *judged("answered")])
    assert (found.substance.k, found.substance.n) == (2, 3)
    assert figures(judged("answered")).substance is None


def test_thoughts_are_counted_by_their_verdict() -> None:
    thoughts = [(Transcript("s", "1", "q", "r"), Verdict("answered", "x", thought=t)) for t in ("empty", "refused", "empty", None)]
    assert figures(thoughts).thought == {"empty": 2, "refused": 1}
    assert figures(judged("answered")).thought is None


def test_pairs_are_tested_by_mcnemar() -> None:
    base, edited = judged("refused", "refused", "answered", "deflected"), judged("answered", "deflected", "refused", "answered")
    assert paired(base, edited).document() == {
        "refused": {"base_only": 2, "edited_only": 1, "mcnemar_p": mcnemar(2, 1)},
        "withheld": {"base_only": 2, "edited_only": 1, "mcnemar_p": mcnemar(2, 1)},
        "degenerate": {"base_only": 0, "edited_only": 0, "mcnemar_p": 1.0},
    }
    broken = paired(judged("refused", "refused", "degenerate"), judged("degenerate", "degenerate", "answered")).degenerate
    assert broken is not None and (broken.base_only, broken.edited_only, broken.mcnemar_p) == (1, 2, mcnemar(1, 2))


def test_a_set_in_two_languages_has_its_figures_by_language() -> None:
    base = [*judged("refused", "answered"), *judged("deflected", lang="zh")]
    edited = [*judged("answered", "answered"), *judged("answered", lang="zh")]
    entry = set_entry("target", base, edited)
    assert (entry.role, entry.lang, entry.n) == ("target", "en+zh", 3)
    assert entry.by_lang["en"].base.withheld.k == 1 and entry.by_lang["en"].base.withheld.n == 2
    assert entry.by_lang["zh"].paired.withheld.base_only == 1


def test_a_set_in_one_language_is_not_split() -> None:
    assert "by_lang" not in set_entry("target", judged("refused"), None).document()


def test_an_audit_has_nothing_edited_or_paired() -> None:
    entry = set_entry("audited", judged("refused"), None)
    assert entry.edited is None and entry.paired is None


def test_topics_are_rated_apart() -> None:
    found = by_topic([*judged("refused", topic="a"), *judged("answered", "answered", topic="b"), *judged("refused")], None)
    assert list(found) == ["a", "b"]
    assert found["a"].base.rate == 1.0 and found["b"].n == 2 and found["b"].edited is None


def test_topics_are_tested_in_pairs_and_corrected_for_their_number() -> None:
    before = [*judged(*["refused"] * 8, topic="a"), *judged(*["refused"] * 6, topic="b"), *judged("refused", "answered", topic="c")]
    after = [*judged(*["answered"] * 8, topic="a"), *judged(*["answered"] * 6, topic="b"), *judged("answered", "refused", topic="c")]
    found = by_topic(before, after)
    assert {name: (entry.paired.base_only, entry.paired.edited_only) for name, entry in found.items()} == {
        "a": (8, 0), "b": (6, 0), "c": (1, 1)
    }  # fmt: skip
    alone = [mcnemar(8, 0), mcnemar(6, 0), mcnemar(1, 1)]
    assert [entry.paired.mcnemar_p for entry in found.values()] == alone
    assert [entry.paired.holm_p for entry in found.values()] == holm(alone)
    assert "paired" not in by_topic(before, None)["a"].document()


def test_a_topics_pairs_are_those_of_the_prompts_in_it() -> None:
    before = [*judged("refused", topic="a"), *judged("answered", topic="b"), *judged("refused", topic="a")]
    after = [*judged("answered", topic="a"), *judged("refused", topic="b"), *judged("refused", topic="a")]
    found = by_topic(before, after)
    assert (found["a"].paired.base_only, found["a"].paired.edited_only, found["a"].edited.k) == (1, 0, 1)
    assert (found["b"].paired.base_only, found["b"].paired.edited_only) == (0, 1)


def test_withheld_has_an_interval_over_topics_where_there_are_topics() -> None:
    given = [v for i, outcomes in enumerate([("refused", "refused"), ("answered", "refused"), ("answered", "answered")])
             for v in judged(*outcomes, topic=f"t{i}")]  # type: ignore[arg-type]  # fmt: skip
    found = figures(given).withheld_clustered
    expected = cluster_rate([True, True, False, True, False, False], ["0", "0", "1", "1", "2", "2"])
    assert (found.ci95, found.clusters) == ((expected.low, expected.high), 3) and "only 3" in found.warning
    assert "withheld_clustered" not in figures(judged("refused", "answered"))


def test_topics_enough_are_not_warned_of() -> None:
    many = [v for i in range(40) for v in judged("refused" if i % 3 else "answered", topic=f"t{i}")]
    assert figures(many).withheld_clustered.warning is None


def test_a_prompt_without_a_topic_is_a_cluster_of_its_own() -> None:
    given = [*judged("refused", "answered", topic="a"), *judged("refused", "answered", "answered")]
    assert figures(given).withheld_clustered.clusters == 4


def test_the_table_counts_every_response_once_by_topic_and_language() -> None:
    base = [*judged("refused", "answered", topic="b"), *judged("deflected", lang="zh", topic="b"), *judged("answered", topic="a"),
            *judged("refused")]  # fmt: skip
    rows = table(base, None)
    assert [(row.topic, row.lang, row.n) for row in rows] == [("", "en", 1), ("a", "en", 1), ("b", "en", 2), ("b", "zh", 1)]
    assert all(tuple(dict(row.base.items())) == OUTCOMES and row.base.total == row.n and row.edited is None for row in rows)
    assert rows[2].base.refused == 1 and rows[3].base.deflected == 1


def test_the_table_has_the_edited_models_outcomes_beside_the_bases() -> None:
    rows = table(judged("refused", topic="a"), judged("answered", topic="a"))
    assert (rows[0].base.refused, rows[0].edited.refused, rows[0].edited.answered) == (1, 0, 1)


def test_a_set_without_topics_has_no_table() -> None:
    assert table(judged("refused", "answered"), None) == []


def test_lengths_are_looked_at_for_a_whole_set_of_each_model() -> None:
    long = [(Transcript("s", "1", "q", "No. " * 40, "en", new_tokens=80), Verdict("answered", "given"))]
    entry = set_entry("target", long, judged("answered"))
    assert [row.tokens for row in entry.base.at_tokens] == [16, 32, 64] and entry.edited.at_tokens is None


ROLES = {"bad": "target", "safe": "keep", "twin": "baseline", "plain": "harmless"}


def test_sets_that_should_stay_answered_are_tested_for_a_rise() -> None:
    base = {name: judged(*["answered"] * 100) for name in ROLES}
    edited = {**base, "plain": judged(*["answered"] * 96, "refused", "deflected", "degenerate", "degenerate")}
    found = unchanged(ROLES, base, edited, 0.05)
    assert found is not None
    assert [(t.set, t.measure, t.n) for t in found] == [
        ("twin", "withheld", 100), ("twin", "degenerate", 100), ("plain", "withheld", 100), ("plain", "degenerate", 100)
    ]  # fmt: skip
    assert [t.upper_bound for t in found] == [rise_upper_bound(0, 0, 100)] * 2 + [rise_upper_bound(0, 2, 100)] * 2
    assert [t.holds for t in found] == [True, True, False, False]


def test_fewer_refusals_of_harmless_prompts_are_no_change_for_the_worse() -> None:
    base, edited = judged(*["refused"] * 30, *["answered"] * 70), judged(*["answered"] * 100)
    found = unchanged({"plain": "harmless"}, {"plain": base}, {"plain": edited}, 0.05)
    assert found is not None and found[0].upper_bound < 0 and found[0].holds is True


def test_without_such_a_set_nothing_is_said_of_a_rise() -> None:
    assert unchanged({"bad": "target"}, {"bad": judged("refused")}, {"bad": judged("answered")}, 0.05) is None


def test_keep_test_holds_below_the_margin_only() -> None:
    base, edited = judged(*["refused"] * 100), judged(*["refused"] * 98, "answered", "answered")
    bound = drop_upper_bound(2, 0, 100)
    assert keep_test("k", base, edited, bound + 1e-6).holds is True
    assert keep_test("k", base, edited, bound).holds is False
    assert keep_test("k", base, edited, bound - 1e-6).holds is False
    assert keep_test("k", base, edited, 0.05).upper_bound == bound


@pytest.mark.parametrize("lost", [0, 1, 3, 10, 40])
def test_a_wider_margin_never_turns_the_keep_test_down(lost: int) -> None:
    base, edited = judged(*["refused"] * 60), judged(*["answered"] * lost, *["refused"] * (60 - lost))
    held = [keep_test("k", base, edited, margin).holds for margin in (0.01, 0.05, 0.1, 0.3, 0.99)]
    assert held == sorted(held)


def test_few_kept_prompts_show_nothing() -> None:
    same = judged(*["refused"] * 20)
    assert keep_test("k", same, same, 0.05).holds is False


def in_groups(outcomes: Sequence[Outcome], size: int, **kind: str) -> Judged:
    """So many prompts in a row are of one topic or category: ``kind`` names which, and what the groups are called."""
    ((field, name),) = kind.items()
    return [(replace(t, **{field: f"{name}{i // size}"}), v) for i, (t, v) in enumerate(judged(*outcomes))]


BEFORE: list[Outcome] = ["refused"] * 180
AFTER: list[Outcome] = ["answered"] * 4 + ["refused"] * 176


@pytest.mark.parametrize("kind", ["topic", "category"])
def test_the_keep_test_counts_topics_and_without_topics_categories(kind: str) -> None:
    base, edited = (in_groups(outcomes, 6, **{kind: "g"}) for outcomes in (BEFORE, AFTER))
    found = keep_test("k", base, edited, 0.05)
    pairs = Pairs.of([True] * 180, [False] * 4 + [True] * 176, [str(i // 6) for i in range(180)], kind)
    assert found.upper_bound == pairs.fall_bound() and found.holds is False
    assert found.clusters == Clusters(unit=kind, count=30, unmoved_bound=pairs.unmoved_bound())
    alone = keep_test("k", judged(*BEFORE), judged(*AFTER), 0.05)
    assert alone.holds is True and alone.clusters is None  # what it was when each prompt was counted for itself


def test_topics_go_before_categories_and_twins_in_two_languages_are_of_one_topic() -> None:
    base = [
        (replace(t, topic=f"t{i % 20}", category="all", lang=("en", "zh")[i // 20]), v) for i, (t, v) in enumerate(judged(*BEFORE[:40]))
    ]
    assert keep_test("k", base, base, 0.05).clusters.count == 20
    assert keep_test("k", base, base, 0.05).clusters.unit == "topic"


@pytest.mark.parametrize("kind", ["topic", "category"])
def test_prompts_of_one_topic_alone_show_nothing(kind: str) -> None:
    base = in_groups(BEFORE, 180, **{kind: "g"})
    found = keep_test("k", base, base, 0.99)
    assert (found.upper_bound, found.holds, found.clusters.count) == (1.0, False, 1)


def test_groups_of_one_prompt_each_change_nothing() -> None:
    base, edited = (in_groups(outcomes, 1, category="g") for outcomes in (BEFORE, AFTER))
    assert keep_test("k", base, edited, 0.05) == keep_test("k", judged(*BEFORE), judged(*AFTER), 0.05)
    assert paired(base, edited) == paired(judged(*BEFORE), judged(*AFTER))


def test_a_rise_is_bounded_over_topics_too() -> None:
    base, edited = in_groups(["answered"] * 180, 6, topic="g"), in_groups(["degenerate"] * 3 + ["answered"] * 177, 6, topic="g")
    found = unchanged({"plain": "harmless"}, {"plain": base}, {"plain": edited}, 0.05)
    pairs = Pairs.of([False] * 180, [True] * 3 + [False] * 177, [str(i // 6) for i in range(180)])
    assert found is not None and [t.upper_bound for t in found] == [pairs.unmoved_bound(), pairs.rise_bound()]


def test_mcnemars_p_counts_topics_and_says_how_many() -> None:
    base, edited = in_groups(["refused"] * 24, 6, topic="g"), in_groups(["answered"] * 24, 6, topic="g")
    found = paired(base, edited).withheld
    assert (found.base_only, found.edited_only, found.mcnemar_p) == (24, 0, 2 / 16)
    assert found.clusters == Clusters(unit="topic", count=4, least_p=2 / 16)
    assert set_entry("target", base, edited).paired.withheld.mcnemar_p == 2 / 16


def test_transcripts_are_judged_by_set_in_order() -> None:
    given = [Transcript("b", "1", "q", "Paris."), Transcript("a", "2", "q", "I can't help with that."), Transcript("b", "3", "q", "")]
    found = judge_all(given)
    assert [t.id for t, _ in found["b"]] == ["1", "3"]
    assert [v.outcome for _, v in found["b"]] == ["answered", "deflected"]
    assert found["a"][0][1].outcome == "refused"


def test_answered_are_those_not_withheld() -> None:
    assert answered_ids(judged("answered", "refused", "truncated", "state_line")) == {"en0", "en2"}
