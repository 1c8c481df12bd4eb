"""AUCs by set, language and topic, the headline context, and what is read from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from abliterate.measures.elicitation.figures import elicitation, reading
from abliterate.measures.parts.elicitation import CONTEXTS, Auc, Elicitation, ElicitedScores, ScoredFact, ScoredPrompt, Unmatched
from abliterate.measures.summary import Judged
from abliterate.replies.transcripts import Transcript

NO, YES = "I can't help with that.", "Heat the water and pour it over the leaves."
Share = Callable[[str, int, str], float]  # set, number of the prompt, context: the share of pairs that the true facts win


def replies(name: str, twin: str, withholds: Callable[[int], bool], n: int = 12) -> Judged:
    made = [
        Transcript(
            name,
            f"{name}-{i}",
            f"Question {i}?",
            NO if withholds(i) else YES,
            lang=("en", "zh")[i % 2],
            topic=f"topic {i // 4}",
            pair=f"{twin}-{i}",
        )
        for i in range(n)
    ]
    return [(transcript, transcript.verdict()) for transcript in made]


def scores(base: Mapping[str, Judged], share: Share) -> ElicitedScores:
    """Two facts with four false ones each for every prompt; the true one wins a given share of them."""
    prompts = []
    for name, judged in base.items():
        for number, (transcript, _) in enumerate(judged):
            true = {context: share(name, number, context) * 4 for context in CONTEXTS}
            false = dict.fromkeys(CONTEXTS, (0.5, 1.5, 2.5, 3.5))
            facts = tuple(
                ScoredFact(fact=f"{transcript.id} {i}", kind="phrase", false=("a", "b", "c", "d"), true_scores=true, false_scores=false)
                for i in range(2)
            )
            prompts.append(ScoredPrompt(set=name, id=transcript.id, facts=facts))
    return ElicitedScores(unmatched=Unmatched(in_question=0, no_sibling=0, other_kind=0), prompts=tuple(prompts))


BASE = {"asked": replies("asked", "plain", lambda i: i < 8), "plain": replies("plain", "asked", lambda i: False)}
ROLES = {"asked": "audited", "plain": "baseline"}


def found(share: Share, edited: Share | None = None) -> Elicitation:
    sides = {"base": scores(BASE, share)} | ({} if edited is None else {"edited": scores(BASE, edited)})
    return elicitation(ROLES, BASE, sides)


def test_the_auc_of_a_set_is_the_mean_of_its_prompts_in_each_context() -> None:
    made = found(lambda name, i, context: {"lead_in": 0.25, "few_shot": 0.75, "chat": (i % 2) * 1.0}[context])
    aucs = {context: each.auc for context, each in made.sets["asked"].base.contexts.items()}
    assert aucs == {"lead_in": 0.25, "few_shot": 0.75, "chat": 0.5, "combined": pytest.approx(0.5)}
    by_lang = made.sets["asked"].by_lang
    assert [by_lang[lang].base.contexts["chat"].auc for lang in ("en", "zh")] == [0.0, 1.0]
    assert made.facts == 48 and made.pairs == 192


def test_prompts_of_one_category_are_a_cluster_in_a_set_without_topics() -> None:
    asked = [(replace(t, topic=None, category=f"category {i % 2}"), verdict) for i, (t, verdict) in enumerate(BASE["asked"])]
    made = elicitation({"asked": "audited"}, {"asked": asked}, {"base": scores({"asked": asked}, lambda name, i, context: 0.5)})
    assert made.sets["asked"].base.contexts["chat"].clusters == 2


def test_the_controls_alone_choose_the_headline_context() -> None:
    def share(name: str, i: int, context: str) -> float:
        best = "chat" if name == "asked" else "few_shot"
        return 1.0 if context == best else 0.5

    made = found(share)
    assert made.context == "few_shot" and made.controls == ("plain",) and made.control is not None and made.control.auc == 1.0
    assert made.sets["plain"].control and not made.sets["asked"].control
    assert made.sets["asked"].base.withheld is not None and made.sets["asked"].base.withheld.auc == 0.5


def test_without_controls_the_context_is_the_combined_one_and_nothing_is_called_unknown() -> None:
    alone = {"asked": BASE["asked"]}
    made = elicitation({"asked": "audited"}, alone, {"base": scores(alone, lambda name, i, context: 0.0)})
    assert made.context == "combined" and made.controls == () and made.control is None
    assert made.sets["asked"].base.withheld is not None and made.sets["asked"].base.withheld.reading == "undecided"


def test_withheld_and_answered_prompts_are_told_apart_by_the_replies() -> None:
    side = found(lambda name, i, context: 1.0 if i < 8 else 0.25).sets["asked"].base
    assert side.withheld is not None and side.answered is not None
    assert (side.withheld.n, side.withheld.auc, side.answered.n, side.answered.auc) == (8, 1.0, 4, 0.25)
    assert found(lambda name, i, context: 1.0).sets["plain"].base.withheld is None


def test_a_topic_is_read_from_its_withheld_prompts_and_names_the_facts_that_beat_all_false_ones() -> None:
    made = found(lambda name, i, context: (1.0 if i < 4 else 0.5) if name == "asked" else 1.0)
    topics = made.sets["asked"].topics
    known, unknown = topics["topic 0"], topics["topic 1"]
    assert known.withheld is not None and known.withheld.reading == "knows"
    assert known.known == ("asked-0 0", "asked-0 1", "asked-1 0", "asked-1 1", "asked-2 0")
    assert unknown.withheld is not None and unknown.withheld.auc == 0.5 and unknown.known == ()
    assert topics["topic 2"].withheld is None


def test_one_question_translated_decides_nothing() -> None:
    base = {"asked": replies("asked", "plain", lambda i: True, n=2)}
    made = elicitation({"asked": "audited"}, base, {"base": scores(base, lambda name, i, context: 1.0)})
    topic = made.sets["asked"].topics["topic 0"]
    assert topic.base.auc == 1.0 and topic.base.auc_ci95 is None
    assert topic.withheld is not None and topic.withheld.reading == "undecided"


def test_a_comparison_has_both_models_and_the_change_on_the_same_prompts() -> None:
    entry = found(lambda name, i, context: 0.5, lambda name, i, context: 1.0 if i < 8 else 0.5).sets["asked"]
    assert entry.edited is not None and entry.change is not None and entry.change_withheld is not None
    assert entry.change.difference == pytest.approx(1 / 3) and entry.change.n == 12
    assert entry.change_withheld.difference == 0.5 and entry.change_withheld.ci95 is not None and entry.change_withheld.ci95[0] > -1
    assert entry.edited.withheld is not None and entry.edited.withheld.auc == 1.0
    topic = entry.topics["topic 0"]
    assert topic.withheld_edited is not None and topic.withheld_edited.auc == 1.0


def test_an_audit_says_nothing_of_a_second_model() -> None:
    document = found(lambda name, i, context: 0.5).document()
    assert "edited" not in document["sets"]["asked"] and "change" not in document["sets"]["asked"]


def auc(value: float, interval: Sequence[float] | None) -> Auc:
    return Auc(auc=value, auc_ci95=None if interval is None else (interval[0], interval[1]), n=10, clusters=5)


@pytest.mark.parametrize(
    ("interval", "control", "said"),
    [
        ((0.55, 0.9), (0.8, (0.7, 0.9)), "knows"),
        ((0.4, 0.6), (0.8, (0.7, 0.9)), "does_not_know"),
        ((0.2, 0.45), (0.8, (0.7, 0.9)), "does_not_know"),
        ((0.4, 0.85), (0.8, (0.7, 0.9)), "undecided"),  # as far as that goes, it may know as much as of the controls
        ((0.4, 0.6), (0.8, (0.45, 0.95)), "undecided"),  # the measure shows no knowledge even of the controls
        ((0.4, 0.6), None, "undecided"),
        (None, (0.8, (0.7, 0.9)), "undecided"),
        ((0.5, 0.6), (0.8, (0.7, 0.9)), "does_not_know"),
    ],
)
def test_what_an_interval_says(interval: tuple[float, float] | None, control: tuple[float, tuple[float, float]] | None, said: str) -> None:
    none = Auc(auc=None, auc_ci95=None, n=0, clusters=0)
    assert reading(auc(0.5, interval), none if control is None else auc(*control)) == said


def test_two_topics_that_happen_to_agree_decide_nothing() -> None:
    """Resampling two topics alone would give an interval as narrow as the distance between them."""
    base = {"asked": replies("asked", "plain", lambda i: i in (0, 4))}
    made = elicitation({"asked": "audited"}, base, {"base": scores(base, lambda name, i, context: 0.75 if i else 0.5)})
    hidden = made.sets["asked"].base.withheld
    assert hidden is not None and hidden.auc == 0.625 and hidden.reading == "undecided"
    assert hidden.auc_ci95 is not None and hidden.auc_ci95[0] < 0.5 and hidden.auc_ci95[1] > 0.9


def test_what_is_withheld_is_read_beside_the_controls_in_its_own_language() -> None:
    """The model knows the controls in English alone, so in Chinese nothing can be called unknown."""
    base = {"asked": replies("asked", "plain", lambda i: True, n=40), "plain": replies("plain", "asked", lambda i: False, n=40)}
    made = elicitation(ROLES, base, {"base": scores(base, lambda name, i, context: 1.0 if name == "plain" and i % 2 == 0 else 0.25)})
    by_lang = {lang: part.base.withheld for lang, part in made.sets["asked"].by_lang.items()}
    assert {lang: part and part.reading for lang, part in by_lang.items()} == {"en": "does_not_know", "zh": "undecided"}


def test_an_edited_model_is_read_beside_its_own_controls() -> None:
    """An edit that ruined the model everywhere: that it does not know what was withheld can't be told any more."""
    base = {"asked": replies("asked", "plain", lambda i: True, n=40), "plain": replies("plain", "asked", lambda i: False, n=40)}
    before, after = (scores(base, lambda name, i, context, known=known: known if name == "plain" else 0.5) for known in (1.0, 0.5))
    entry = elicitation(ROLES, base, {"base": before, "edited": after}).sets["asked"]
    assert entry.base.withheld is not None and entry.base.withheld.reading == "does_not_know"
    assert entry.edited is not None and entry.edited.withheld is not None and entry.edited.withheld.reading == "undecided"


def test_a_change_on_few_topics_is_as_wide_as_students() -> None:
    changes = {0: 0.0, 1: 0.25, 2: 0.75}  # by topic
    entry = found(lambda name, i, context: 0.0, lambda name, i, context: changes[i // 4]).sets["asked"]
    assert entry.change is not None and entry.change.difference == pytest.approx(1 / 3)
    assert entry.change.ci95 is not None and entry.change.ci95[0] < -0.5 and entry.change.ci95[1] == 1.0
