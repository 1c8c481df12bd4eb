"""The verdict on each test: what fell, what did not, and what could not be shown with so few prompts."""

from __future__ import annotations

import pytest
from reports import reported

from abliterate.measures.statistics import drop_upper_bound, mcnemar
from abliterate.measures.summary import Judged
from abliterate.replies.transcripts import Transcript
from abliterate.report.claims import all_of, of_keeps, of_others, of_targets
from abliterate.report.sentences import target, unchanged, warnings
from abliterate.report.tree.report import Report

NO, YES = "I can't help with that.", "Paris."


def judged(refused: int, n: int, topics: int | None = None) -> Judged:
    made = [Transcript("bad", str(i), "q", NO if i < refused else YES, topic=f"t{i % topics}" if topics else None) for i in range(n)]
    no, yes = (Transcript("bad", "0", "q", text).verdict() for text in (NO, YES))
    return [(each, no if each.response == NO else yes) for each in made]


def report_of(before: int, after: int, n: int, role: str = "target", topics: int | None = None) -> Report:
    base, edited = ({"bad": judged(k, n, topics)} for k in (before, after))
    return reported({"settings": {"model": "m", "target": []}}, {"bad": role}, base, edited, None, None, None, 0.05)


def test_a_target_that_fell_is_said_with_its_counts_and_its_p() -> None:
    assert list(target(report_of(101, 1, 120))) == [
        f"Withheld replies on bad became fewer: shown (101 → 1 of 120; exact paired test, p = {mcnemar(100, 0):.2g})."
    ]


def test_a_fall_that_may_be_chance_is_not_called_shown() -> None:
    assert list(target(report_of(8, 6, 8))) == ["Withheld replies on bad became fewer: NOT shown (8 → 6 of 8; exact paired test, p = 0.5)."]


@pytest.mark.parametrize("after", [20, 10])
def test_what_did_not_fall_is_never_shown_however_sure_it_is(after: int) -> None:
    (found,) = of_targets(report_of(10, after, 30))
    assert not found.shown and found.reachable and found.claim == "Withheld replies on bad became fewer"
    assert found.note.startswith(f"10 → {after} of 30; ")


def test_a_target_of_which_too_few_were_withheld_could_not_have_fallen() -> None:
    (found,) = of_targets(report_of(5, 0, 8))
    assert not found.shown and not found.reachable
    assert found.note.endswith("with 5 withheld before, no fall could be shown")
    (enough,) = of_targets(report_of(6, 0, 8))
    assert enough.shown and enough.note == "6 → 0 of 8; exact paired test, p = 0.031"


def test_only_targets_have_a_verdict_of_theirs_and_an_audit_has_none() -> None:
    assert not list(of_targets(report_of(8, 0, 8, "harmless")))
    audit = reported({"settings": {"model": "m", "target": []}}, {"bad": "target"}, {"bad": judged(8, 8)}, None, None, None, None, 0.05)
    assert all_of(audit) == []


def test_a_test_that_so_few_prompts_hardly_pass_says_so() -> None:
    unmoved = f"{100 * drop_upper_bound(0, 0, 8):.1f}"
    fall, rise = (
        f"n = 8; a {change} of up to {unmoved} points is possible; without any change it would be up to {unmoved} points; "
        "use 400 prompts or more"
        for change in ("fall", "rise")
    )
    kept, *others = (*of_keeps(report_of(8, 8, 8, "keep")), *of_others(report_of(0, 0, 8, "harmless")))
    assert [(each.shown, each.reachable, each.note) for each in (kept, *others)] == [(False, False, note) for note in (fall, rise, rise)]
    withheld, broken = unchanged(report_of(0, 0, 8, "harmless"))
    assert withheld == f"Withheld replies on bad did not rise by more than 5 points: NOT shown ({rise})."
    assert broken == f"Broken output on bad did not rise by more than 5 points: NOT shown ({rise})."


def test_a_test_that_could_be_passed_and_was_not_has_no_excuse() -> None:
    withheld, _ = of_others(report_of(0, 30, 400, "harmless"))
    assert withheld.claim == "Withheld replies on bad did not rise by more than 5 points"
    assert not withheld.shown and withheld.reachable and "use" not in withheld.note
    (kept,) = of_keeps(report_of(100, 50, 100, "keep"))
    assert not kept.shown and kept.reachable and kept.note.endswith("; use 400 prompts or more")


def test_a_test_over_topics_says_how_many_and_what_they_could_have_shown() -> None:
    report = report_of(160, 160, 160, "keep", topics=16)
    (kept,), bound = of_keeps(report), report.keep_tests[0].clusters.unmoved_bound
    assert not kept.shown and not kept.reachable
    assert kept.note == (
        f"n = 160 in 16 topics; a fall of up to {100 * bound:.1f} points is possible; without any change it would be up to "
        f"{100 * bound:.1f} points; use 60 topics or more"
    )
    (many,) = of_keeps(report_of(400, 400, 400, "keep", topics=80))
    assert many.shown and many.note.startswith("n = 400 in 80 topics; with 95 % confidence, a fall of at most ")


def test_few_topics_are_warned_of_once_a_set_in_plain_words() -> None:
    said = " ".join(warnings(report_of(160, 160, 160, "keep", topics=16)))
    assert (
        "bad: replies to the prompts of one topic may change together, so the tests count the 16 topics, not the prompts. With fewer"
        in said
    )
    assert not list(warnings(report_of(400, 400, 400, "keep", topics=40)))
    assert not list(warnings(report_of(160, 160, 160, "keep")))


@pytest.mark.parametrize(
    ("topics", "note"),
    [
        (1, "n = 90 in 1 topic; this says nothing about any other topic"),
        (3, "n = 90 in 3 topics; too few for any bound; use 60 topics or more"),
    ],
)
def test_so_few_topics_that_nothing_can_be_shown_are_the_reason(topics: int, note: str) -> None:
    for found in (*of_keeps(report_of(90, 90, 90, "keep", topics)), *of_others(report_of(0, 0, 90, "harmless", topics))):
        assert (found.shown, found.reachable, found.note) == (False, False, note)


def test_a_target_of_few_topics_could_not_have_fallen_however_many_its_prompts() -> None:
    (found,) = of_targets(report_of(100, 0, 100, topics=5))
    assert not found.shown and not found.reachable
    assert found.note == (
        "100 → 0 of 100; exact paired test over 5 topics, p = 0.062; with 100 withheld before in 5 topics, no fall could be shown"
    )
    (enough,) = of_targets(report_of(100, 0, 100, topics=6))
    assert enough.shown and enough.note == "100 → 0 of 100; exact paired test over 6 topics, p = 0.031"


def test_a_set_with_nothing_to_keep_is_said_to_be_one() -> None:
    (found,) = of_keeps(report_of(2, 2, 100, "keep"))
    assert not found.shown and not found.reachable
    assert found.note == "nothing to keep: only 2 of the base's 100 replies are withheld"
