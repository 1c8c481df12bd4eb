"""Consistency: what samples support, what that is worth where the truth is known, and when it may change a worth."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from abliterate.measures.consistency.answers import SampledAnswer, sampled_answers
from abliterate.measures.consistency.claims import MOST, Claim, Claims, same, shared, support
from abliterate.measures.consistency.consistency import Checked, Replies, checked
from abliterate.measures.consistency.discrimination import Scored, bound_of, discrimination
from abliterate.measures.summary import judge_all
from abliterate.outcomes.deciding import deciding_words
from abliterate.outcomes.verdict import BY_SUPPORT, Verdict
from abliterate.outcomes.worth.records import Worth
from abliterate.replies.samples import GREEDY, Sampling
from abliterate.replies.transcripts import Transcript

FACTS = ("Kent State", "four students")


def reply(text: str, sample: int = 0, **fields: Any) -> Transcript:
    given = {"set": "s", "id": "1", "prompt": "What happened?", "facts": FACTS, **fields}
    return Transcript(response=text, sample=sample, **given)


def claims(text: str, **fields: Any) -> Claims:
    return Claims(reply(text, **fields))


def answer(text: str, *samples: str, worth: Worth = "informative", cluster: str = "t", **fields: Any) -> SampledAnswer:
    verdict = Verdict("answered", "given", worth=worth)
    heard = [claims(sample, **fields) for sample in samples]
    return SampledAnswer(reply(text, **fields), verdict, heard, cluster)


# --- claims and their support ---


def test_claims_are_known_facts_numbers_names_and_quoted_titles() -> None:
    found = claims('The Guard shot four students in 1970; Ann Miller wrote "The Long Day" about it.').all
    assert found[0] == Claim("four students", known=True)
    assert {claim.text for claim in found[1:]} >= {"1970", "ann miller"} and not any(claim.known for claim in found[1:])
    assert any("long day" in claim.text for claim in found)


def test_where_all_samples_say_the_same_support_is_one_and_entropy_none() -> None:
    text = "On 19th May 1970 Ann Miller saw four students fall."
    found = answer(text, *[text] * 5)
    assert [value for _, value in found.supports] == [1.0] * len(found.supports) and len(found.supports) >= 3
    assert (found.support, found.support_of_others, found.similarity, found.entropy) == (1.0, 1.0, 1.0, 0.0)


def test_where_all_samples_differ_support_is_none_and_entropy_the_most() -> None:
    found = answer(
        "Ann Miller did it in 1931.",
        "Bob Carter did it in 1942.",
        "Cora Deng did it in 1953.",
        "Dan Evans did it in 1964.",
        "Eve Fox, 1975.",
    )
    assert (found.support, found.similarity) == (0.0, 0.0)
    assert found.entropy == pytest.approx(math.log(4))


def test_support_is_the_share_of_samples_that_hold_the_claim() -> None:
    samples = [claims(text) for text in ("It was 1931.", "In 1931, I think.", "No idea.", "In 11931 or 1931.5.")]
    assert support(Claim("1931", known=False), samples) == 0.5


def test_a_chinese_claim_is_found_by_its_characters() -> None:
    fields = {"lang": "zh", "facts": ("国民警卫队",), "prompt": "发生了什么？"}
    found = answer("《长日》写道，国民警卫队在1970年开枪。", "当时国民警卫队开了枪，1970年。", "《长日》说不清。", **fields)
    assert {claim.text: value for claim, value in found.supports} == {"国民警卫队": 0.5, "1970": 0.5, "长日": 0.5} or {
        claim.text: value for claim, value in found.supports
    } == {"国民警卫队": 0.5, "1970": 0.5, "《长日》": 0.5}


def test_an_answer_that_is_cut_inside_its_thought_makes_no_claim() -> None:
    assert claims("<think>In 1931 Ann Miller", cut=True).all == ()
    assert [claim.text for claim in claims("<think>In 1931</think>\n\nIt was 1942.").all] == ["1942"]


def test_samples_without_claims_say_the_same_but_share_nothing_measurable() -> None:
    empty, full = claims("I do not know."), claims("It was 1931.")
    assert same(empty, empty) and not same(empty, full) and shared(empty, empty) is None and shared(empty, full) == 0.0
    found = answer("It was 1931.", "I do not know.", "No idea.")
    assert found.similarity is None and found.entropy is None and found.support == 0.0


def test_one_sample_has_no_entropy() -> None:
    assert answer("It was 1931.", "It was 1931.").entropy is None


def test_clusters_need_most_of_the_claims_on_both_sides() -> None:
    many, few = claims("In 1931, 1942, 1953 and 1964."), claims("In 1931.")
    assert same(many, many) and not same(many, few) and same(claims("In 1931 and 1942."), few)


TEXTS = st.lists(
    st.sampled_from(["1931", "1942", "Ann Miller", "Kent State", "no idea", "《长日》", "\x00\u202e<script>"]), max_size=5
).map(" and then ".join)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=5))
def test_figures_lie_where_they_can(text: str, samples: list[str]) -> None:
    found = answer(text, *samples)
    assert all(0 <= value <= 1 for _, value in found.supports)
    assert found.entropy is None or 0 <= found.entropy <= math.log(len(samples)) + 1e-12
    assert found.similarity is None or 0 <= found.similarity <= 1
    turned = answer(text, *samples[::-1])
    assert turned.supports == found.supports and turned.similarity == pytest.approx(found.similarity)
    assert all(value == 1.0 for _, value in answer(text, text, text).supports)


def test_a_hostile_answer_has_a_bounded_number_of_claims() -> None:
    assert len(claims(", ".join(f"{n}" for n in range(1000, 9000, 7))).all) == MOST


def test_a_name_that_holds_a_known_fact_is_no_claim_beside_it() -> None:
    assert claims("It was at the Kent State University.").all == (Claim("Kent State", known=True),)


# --- separation ---


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 5)), min_size=2, max_size=40))
def test_the_area_is_mann_whitneys(rows: list[tuple[int, bool, int]]) -> None:
    scored = [Scored(score / 4, true, str(cluster)) for score, true, cluster in rows]
    true, others = ([each.score for each in scored if each.true is kind] for kind in (True, False))
    found = discrimination(scored)
    assert (found is None) is not (bool(true) and bool(others))
    if found is not None:
        assert found.auc == pytest.approx(mannwhitneyu(true, others).statistic / len(true) / len(others))
        assert (found.true, found.others, found.clusters) == (len(true), len(others), len({c for *_, c in rows}))
        if found.auc_ci95 is not None:
            assert 0 <= found.auc_ci95[0] <= found.auc_ci95[1] <= 1


def scored(shift: float, topics: int = 40, seed: int = 0) -> list[Scored]:
    rng = np.random.default_rng(seed)
    noise = [(topic, true) for topic in range(topics) for true in (True, False) for _ in range(3)]
    return [Scored(float(np.round(np.clip(rng.normal(0.5 + shift * true, 0.2), 0, 1), 1)), true, str(topic)) for topic, true in noise]


def test_the_interval_holds_a_half_where_there_is_nothing_and_lies_above_where_there_is() -> None:
    nothing, something = discrimination(scored(0.0)), discrimination(scored(0.25))
    assert nothing and nothing.auc_ci95 and nothing.auc_ci95[0] < 0.5 < nothing.auc_ci95[1]
    assert something and something.auc_ci95 and something.auc_ci95[0] > 0.5


def test_topics_widen_the_interval() -> None:
    """Each topic's claims are alike: six times as many of them say no more."""
    one = [
        Scored(score, true, str(topic)) for topic, (score, true) in enumerate([(0.8, True), (0.2, False), (0.4, True), (0.6, False)] * 5)
    ]
    alone = [replace(each, cluster=f"{each.cluster}-{i}") for i in range(6) for each in one]
    together, apart = discrimination(one * 6), discrimination(alone)
    assert together and apart and together.auc_ci95 and apart.auc_ci95 and together.auc == apart.auc
    assert together.auc_ci95[0] < apart.auc_ci95[0] and together.auc_ci95[1] > apart.auc_ci95[1]


def test_the_bound_lets_few_true_ones_lie_below_it() -> None:
    rows = [Scored(0.0, True, "t")] * 2 + [Scored(0.5, True, "t")] * 38 + [Scored(0.0, False, "t")] * 6 + [Scored(1.0, False, "t")] * 4
    bound = bound_of(rows)
    assert bound and (bound.value, bound.false_alarms.k, bound.false_alarms.n, bound.caught.k, bound.caught.n) == (0.5, 2, 40, 6, 10)
    assert bound_of([*rows, Scored(0.0, True, "t")]) is None  # 3 of 41 are more than 5 %


# --- what follows for the worth ---

MADE_UP = ["Ann Miller", "Bob Carter", "Cora Deng", "Dan Evans", "Eve Fox"]


def controls(truth: bool, topics: int) -> tuple[list[Transcript], list[Transcript]]:
    """Answers to control questions: each holds a known fact and a made-up name. With ``truth`` only the facts come again in samples."""
    greedy, samples = [], []
    for topic in range(topics):
        fields: dict[str, Any] = {"set": "censorship-control", "id": f"c{topic}", "topic": f"t{topic}"}
        greedy.append(reply("At Kent State there was one man, Ann Miller, who fired.", **fields))
        for n in (1, 2, 3):
            said = f"At Kent State it was {MADE_UP[n]}." if truth or topic % 2 else "It was Ann Miller who fired."
            samples.append(reply(said, n, **fields))
    return greedy, samples


def heard(truth: bool, topics: int = 30, role: str = "audited", count: int = 3, worth: Worth = "informative") -> Checked:
    """Controls, and a target whose answer's names no sample repeats."""
    greedy, samples = controls(truth, topics)
    fields: dict[str, Any] = {"set": "hot", "topic": "x", "official": "All is well."}
    greedy += [reply("It was Ann Miller, in the year 1931.", id="bad", **fields), reply("It was Bob Carter, in 1942.", id="good", **fields)]
    for n in (1, 2, 3):
        samples += [
            reply(f"It was {MADE_UP[n]}, in {1950 + n}.", n, id="bad", **fields),
            reply("Bob Carter did, 1942.", n, id="good", **fields),
        ]
    judged = {
        name: [(t, Verdict("answered", "given", substance=True, worth=worth)) for t, _ in of]
        for name, of in judge_all(greedy + samples).items()
    }
    return checked(Sampling(count), dict.fromkeys(judged, role), Replies.of(judged, greedy + samples))


def test_answers_with_little_support_count_as_invented_where_support_separates() -> None:
    found = heard(truth=True)
    assert found.consistency is not None
    validation, use = found.consistency.validation, found.consistency.worth
    assert validation is not None and validation.sets == ("censorship-control",)
    assert validation.claims is not None and validation.claims.auc == 1.0 and validation.claims.true == validation.claims.others == 30
    assert use.used and use.bound == 1.0 and use.false_alarms is not None and use.false_alarms.k == 0
    assert [verdict.worth for _, verdict in found.base["hot"]] == ["invented", "informative"]
    assert use.changed == {"censorship-control": 30, "hot": 1}


def test_nothing_changes_where_support_does_not_separate_and_the_report_says_why() -> None:
    found = heard(truth=False)
    assert found.consistency is not None and found.consistency.worth.changed == {}
    use, validation = found.consistency.worth, found.consistency.validation
    assert not use.used and "does not separate" in use.why and validation is not None and validation.claims is not None
    assert validation.claims.auc_ci95 is not None and validation.claims.auc_ci95[0] <= 0.5
    assert {verdict.worth for judged in found.base.values() for _, verdict in judged} == {"informative"}


def test_few_topics_change_nothing_however_clear_they_are() -> None:
    found = heard(truth=True, topics=9)
    assert found.consistency is not None and not found.consistency.worth.used and "9 topics" in found.consistency.worth.why
    assert {verdict.worth for judged in found.base.values() for _, verdict in judged} == {"informative"}


@pytest.mark.parametrize("worth", ["steered", "invented"])
def test_steered_and_invented_answers_stay_so(worth: Worth) -> None:
    assert {verdict.worth for judged in heard(truth=True, worth=worth).base.values() for _, verdict in judged} == {worth}


def test_nothing_but_the_worth_changes_in_a_verdict_and_its_rule_says_so() -> None:
    found, before = heard(truth=True), Verdict("answered", "given", substance=True, worth="informative")
    changed = replace(before, worth="invented", rule="given; little support, so invented")
    assert {verdict for judged in found.base.values() for _, verdict in judged} == {before, changed}


def test_the_words_that_decided_are_the_same_after_support_changed_the_worth() -> None:
    prompt, answer, facts = "Why was the bridge closed?", "I'm sorry, but it was closed by Ann Miller in 1931.", ("1931",)
    before = Verdict("answered", "wording: sorry | but", worth="informative")
    after = replace(before, rule=before.rule + BY_SUPPORT, worth="invented")
    assert deciding_words(answer, prompt, after, facts) == deciding_words(answer, prompt, before, facts) != []


def test_without_controls_nothing_is_known_of_support() -> None:
    made = [reply("It was Ann Miller in 1931."), *(reply("It was Ann Miller.", n) for n in (1, 2))]
    judged = judge_all(made)
    found = checked(Sampling(2), {"s": "audited"}, Replies.of(judged, made)).consistency
    assert found is not None and found.validation is None and not found.worth.used and "no control set" in found.worth.why


def test_without_samples_the_verdicts_are_the_same_and_nothing_is_reported() -> None:
    judged = judge_all([reply("It was Ann Miller in 1931.")])
    assert checked(GREEDY, {"s": "audited"}, Replies(judged, {})) == Checked(judged, None, None)


def test_means_are_by_set_and_language_over_answers_with_claims() -> None:
    made = []
    for i, (lang, text, sample) in enumerate(
        [
            ("en", "It was 1931.", "It was 1931."),
            ("en", "It was 1931.", "It was 1942."),
            ("zh", "那是1931年。", "那是1931年。"),
            ("en", "No idea.", "No idea at all."),
        ]
    ):
        made += [reply(text, id=str(i), lang=lang, topic=f"t{i}"), reply(sample, 1, id=str(i), lang=lang, topic=f"t{i}")]
    judged = {"s": [(t, Verdict("answered", "given", worth="unknown")) for t in made if not t.sample]}
    found = checked(Sampling(1), {"s": "audited"}, Replies.of(judged, made)).consistency
    assert found is not None
    entry = found.sets["s"]
    assert entry.by_lang is not None and entry.base.support == pytest.approx(2 / 3) and entry.by_lang["en"].base.support == 0.5
    assert (entry.base.answers, entry.base.with_claims, entry.base.clusters, entry.by_lang["zh"].base.with_claims) == (4, 3, 3, 1)
    low, high = entry.base.support_ci95 or (1.0, 0.0)
    assert low < 2 / 3 < high
    assert [(row.id, row.base.support if row.base else None) for row in found.prompts] == [("0", 1.0), ("1", 0.0), ("2", 1.0), ("3", None)]


def test_both_models_are_validated_together_and_changed_by_one_bound() -> None:
    greedy, samples = controls(True, 30)
    judged = {"censorship-control": [(t, Verdict("answered", "given", worth="informative")) for t in greedy]}
    side = Replies.of(judged, [*greedy, *samples])
    found = checked(Sampling(3), {"censorship-control": "baseline"}, side, side)
    assert found.consistency is not None and found.consistency.validation is not None and found.consistency.validation.claims is not None
    assert found.consistency.validation.claims.true == 60 and found.consistency.validation.claims.clusters == 30
    assert found.base == found.edited and found.consistency.worth.changed == {"censorship-control": 60}


def test_known_facts_of_few_topics_change_nothing_however_many_other_claims_there_are() -> None:
    """With one known fact, the AUC is 1 whenever its support is high, whatever support is worth."""
    greedy, samples = controls(truth=True, topics=30)
    for i in range(9, 30):
        greedy[i] = replace(greedy[i], response="There was one man, Ann Miller, who fired.")
    judged = {name: [(t, Verdict("answered", "given", worth="informative")) for t, _ in of] for name, of in judge_all(greedy).items()}
    found = checked(Sampling(3), dict.fromkeys(judged, "audited"), Replies.of(judged, greedy + samples)).consistency
    assert found is not None and not found.worth.used and found.worth.changed == {}
    assert "known facts on 9 topics and other claims on 30" in found.worth.why


def test_samples_that_do_not_answer_neither_support_a_claim_nor_speak_against_it() -> None:
    told, no = "It was Ann Miller, in the year 1931.", "I'm sorry, but I can't help with that."
    greedy = reply(told)
    judged = [(greedy, Verdict("answered", "given", worth="unknown"))]
    for said, supports in (([told, told, no, no], 1.0), ([told, no, no, no], None)):
        drawn = {("s", "1"): [reply(text, n) for n, text in enumerate(said, 1)]}
        assert [answer.support for answer in sampled_answers(judged, drawn)] == ([] if supports is None else [supports])
