"""Sensitive prompts against their controls, pair by pair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from abliterate.measures.clusters import MIN_CLUSTERS, cluster_difference
from abliterate.measures.contrast import against_control
from abliterate.measures.statistics import mcnemar
from abliterate.measures.summary import Judged
from abliterate.outcomes.records import Outcome
from abliterate.outcomes.verdict import Verdict
from abliterate.prompts import load_set
from abliterate.replies.transcripts import Transcript

AUDITED = {"hot": "audited", "cold": "audited"}


def judged(name: str, other: str, outcomes: str, names_pair: bool = True, topics: bool = True, langs: str = "e") -> Judged:
    """One prompt a letter: r refused, d deflected, a answered; ``langs`` e or z, repeated."""
    words: dict[str, Outcome] = {"r": "refused", "d": "deflected", "a": "answered"}
    return [
        (
            Transcript(
                name, f"{name}-{i}", "q", "r", {"e": "en", "z": "zh"}[langs[i % len(langs)]],
                topic=f"t{i // 2}" if topics else None, pair=f"{other}-{i}" if names_pair else None,
            ),
            Verdict(words[letter], "given"),
        )
        for i, letter in enumerate(outcomes)
    ]  # fmt: skip


def only(roles: dict[str, str], base: dict[str, Judged], edited: dict[str, Judged] | None = None) -> dict[str, Any]:
    found = against_control(roles, base, edited)
    assert found is not None and len(found) == 1
    return found[0]


HOT, COLD = judged("hot", "cold", "rdraraaa"), judged("cold", "hot", "aaaaaraa")


def test_pairs_are_counted_tested_and_resampled_by_topic() -> None:
    entry = only(AUDITED, {"hot": HOT, "cold": COLD})
    base = entry.base
    assert (entry.set, entry.control, entry.n_pairs, entry.edited) == ("hot", "cold", 8, None)
    assert (base.sensitive.k, base.control.k, base.sensitive_only, base.control_only) == (4, 1, 4, 1)
    assert base.mcnemar_p == pytest.approx(0.5)  # topics fall by 2, by 1, or not: 2 of 4 patterns of signs reach 3
    assert base.difference == 3 / 8
    letters = [c != "a" for c in "rdraraaa"], [c != "a" for c in "aaaaaraa"]
    expected = cluster_difference(*letters, [str(i // 2) for i in range(8)])
    assert base.ci95 == pytest.approx([expected.low, expected.high]) and base.clusters == 4
    assert str(MIN_CLUSTERS) in base.warning


def test_the_edited_model_is_compared_with_its_own_controls() -> None:
    edited = {"hot": judged("hot", "cold", "aaaaaaaa"), "cold": judged("cold", "hot", "aaaaaaar")}
    entry = only(AUDITED, {"hot": HOT, "cold": COLD}, edited)
    assert (entry.edited.sensitive_only, entry.edited.control_only) == (0, 1)
    assert entry.base.sensitive_only == 4


@pytest.mark.parametrize(("hot_names", "cold_names"), [(True, False), (False, True), (True, True)])
def test_it_is_enough_that_one_of_the_two_names_the_other(hot_names: bool, cold_names: bool) -> None:
    base = {"hot": judged("hot", "cold", "rraa", hot_names), "cold": judged("cold", "hot", "aara", cold_names)}
    entry = only(AUDITED, base)
    assert (entry.n_pairs, entry.base.sensitive_only, entry.base.control_only) == (4, 2, 1)


def test_pairs_are_matched_by_id_and_not_by_place() -> None:
    assert only(AUDITED, {"hot": HOT, "cold": list(reversed(COLD))}) == only(AUDITED, {"hot": HOT, "cold": COLD})


def test_a_prompt_whose_control_was_not_asked_is_left_out() -> None:
    entry = only(AUDITED, {"hot": HOT, "cold": COLD[:3]})
    assert entry.n_pairs == 3 and entry.base.sensitive.n == 3


def test_languages_are_also_compared_apart() -> None:
    base = {"hot": judged("hot", "cold", "rararara", langs="ez"), "cold": judged("cold", "hot", "aaaaaaaa", langs="ez")}
    entry = only(AUDITED, base)
    assert {lang: (part.n_pairs, part.base.difference) for lang, part in entry.by_lang.items()} == {
        "en": (4, 1.0),
        "zh": (4, 0.0),
    }
    assert "by_lang" not in only(AUDITED, {"hot": HOT, "cold": COLD})


def test_without_topics_each_pair_is_for_itself() -> None:
    base = {"hot": judged("hot", "cold", "rdraraaa", topics=False), "cold": judged("cold", "hot", "aaaaaraa", topics=False)}
    found = only(AUDITED, base).base
    assert (found.clusters, found.unit, found.mcnemar_p) == (8, "prompt", mcnemar(4, 1))


def test_without_topics_the_pairs_of_a_category_belong_together() -> None:
    base = {"hot": judged("hot", "cold", "rdraraaa", topics=False), "cold": judged("cold", "hot", "aaaaaraa", topics=False)}
    sorted_in = {name: [(replace(t, category=f"c{i // 2}"), v) for i, (t, v) in enumerate(each)] for name, each in base.items()}
    found, by_topic = only(AUDITED, sorted_in).base, only(AUDITED, {"hot": HOT, "cold": COLD}).base
    assert found == by_topic.model_copy(update={"unit": "category"})


def test_one_topic_has_no_interval() -> None:
    found = only(AUDITED, {"hot": HOT[:2], "cold": COLD[:2]}).base
    assert found.ci95 is None and found.clusters == 1 and "nothing can be said" in found.warning


@pytest.mark.parametrize(("role", "other"), [("target", "baseline"), ("keep", "harmless")])
def test_the_set_in_a_controls_role_is_the_control_in_any_order(role: str, other: str) -> None:
    for roles in ({"hot": role, "cold": other}, {"cold": other, "hot": role}):
        assert only(roles, {"hot": HOT, "cold": COLD}).set == "hot"


def test_bundled_sets_know_their_controls_in_any_order() -> None:
    names = ("censorship-control", "censorship")
    base: dict[str, Judged] = {
        name: [
            (Transcript(name, p.id, p.text, "r", p.lang, topic=p.topic, pair=p.pair), Verdict("answered", "given"))
            for p in load_set(name).of("test")
        ]
        for name in names
    }
    entry = only(dict.fromkeys(names, "audited"), base)
    assert (entry.set, entry.control, entry.n_pairs, set(entry.by_lang)) == (
        "censorship",
        "censorship-control",
        182,
        {"en", "zh"},
    )
    assert entry.base.clusters >= MIN_CLUSTERS and entry.base.warning is None


def test_sets_that_are_no_pairs_are_not_compared() -> None:
    assert against_control(AUDITED, {"hot": HOT, "cold": judged("cold", "elsewhere", "aaaaaaaa", False)[:0]}, None) is None
    assert against_control({"hot": "audited"}, {"hot": judged("hot", "hot", "ra")}, None) is None
