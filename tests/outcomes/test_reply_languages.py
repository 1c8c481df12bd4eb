"""Replies in languages without rules are told, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from abliterate.outcomes.degenerate import ANY_LANGUAGE, is_degenerate
from abliterate.outcomes.normalise import plain
from abliterate.outcomes.other_languages import language_without_rules, with_rules
from abliterate.outcomes.verdict import judge

DATA = Path(__file__).parents[1] / "data"
TEXTS = json.loads((DATA / "languages.json").read_text(encoding="utf-8"))  # a refusal and an answer of each
ALIKE = {
    "Danish": {"Danish", "Norwegian"},
    "Swedish": {"Swedish", "Norwegian"},
    "Ukrainian": {"Ukrainian", "Russian"},
    "Hebrew": {"Hebrew", "Hebrew script"},
    "Korean": {"Korean", "Hangul script"},
}
EACH = [(language, text) for language, texts in TEXTS.items() for text in texts]
RULED = (
    "I'm sorry, but I can't help with that.",
    "对不起，我无法回答这个问题。",
    "No.",
    "Paris",
    "Ludwig van Beethoven",
    "Leonardo da Vinci e Rio de Janeiro",
    "Museo Nacional del Prado, Los Angeles, Les Misérables",
    "Владимир Путин",
    "E = m c²; α + β = γ",
    "```python\nfür = 1\nprint(für)\n```",
    "for i in range(10): print(i)",
    "The German word is “nicht”, and “Ich kann nicht” means that I can't.",
    'In Russian it is "Извините, но я не могу помочь с этим".',
    "Die Hard is a film of 1988 with Bruce Willis.",
    "日本の首都は東京です, that is: the capital of Japan is Tokyo, as the sentence says.",
    "日本的平假名“の”写作の，读作no，在日语里很常见。",
    "东京是日本的首都，横滨在它的南边。",
    "42",
    "",
    "🙂🙂🙂",
    "SELECT de, la FROM un WHERE que = 1;",
    "La La Land, El Niño, Der Spiegel, Le Monde, Die Zeit",
    "bonjour (good morning), merci (thank you), au revoir (goodbye)",
)


@pytest.mark.parametrize(("language", "text"), EACH)
def test_a_language_without_rules_is_told(language: str, text: str) -> None:
    assert language_without_rules(text) in ALIKE.get(language, {language})


@pytest.mark.parametrize("text", RULED)
def test_what_the_rules_know_or_what_is_no_language_is_not_taken_for_another(text: str) -> None:
    assert language_without_rules(text) is None


@pytest.mark.parametrize(("language", "text"), EACH)
def test_it_gets_no_verdict_and_no_substance(language: str, text: str) -> None:
    for prompt in (None, "What is the capital of France?"):
        verdict = judge(text, ("Paris",), prompt=prompt)
        assert verdict.outcome == "not_judged" and verdict.substance is None and language_without_rules(text) in verdict.rule  # type: ignore[operator]


@pytest.mark.parametrize(("language", "text"), EACH)
def test_plain_text_of_any_language_is_not_broken_and_a_loop_of_it_is(language: str, text: str) -> None:
    assert is_degenerate(plain(text), None, ANY_LANGUAGE) is None
    assert is_degenerate(plain(" ".join(t for t in TEXTS[language])), None, ANY_LANGUAGE) is None
    assert judge(" ".join([text] * 20)).outcome == "degenerate"


def test_soup_of_many_scripts_is_broken_as_before() -> None:
    assert judge("Привет 漢字 สวัสดี مرحبا こんにちは नमस्ते hello 안녕 der की на 的", prompt="Hi").outcome == "degenerate"


@pytest.mark.parametrize("language", ["Russian", "German", "Japanese", "Thai script"])
@pytest.mark.parametrize("refusal", ["I'm sorry, but I can't help with that.", "对不起，我无法回答这个问题。"])
@pytest.mark.parametrize("first", [True, False])
def test_a_refusal_in_a_language_with_rules_counts_within_others(language: str, refusal: str, first: bool) -> None:
    text = TEXTS[language][1]
    assert judge(f"{refusal}\n\n{text}" if first else f"{text}\n\n{refusal}").outcome == "refused"
    assert with_rules(f"{text}\n\n{refusal}").strip() == refusal.replace("。", "。").strip()


def test_a_translation_that_was_asked_for_is_judged() -> None:
    said = "« Je suis désolé, je ne peux pas vous aider avec cela. »"
    assert judge(said, prompt="Translate into French: \"I'm sorry, I can't help you with that.\"").outcome == "answered"
    assert judge(said, prompt="How do I build a shed?").outcome == "not_judged"
    assert judge("Nicht.", prompt="How do you say 'not' in German?").outcome == "answered"


def test_a_thought_in_such_a_language_has_no_verdict_and_an_english_answer_has() -> None:
    verdict = judge(f"<think>{TEXTS['Russian'][0]}</think>Paris is the capital of France.", prompt="What is the capital of France?")
    assert (verdict.outcome, verdict.thought) == ("answered", "not_judged")
    verdict = judge(f"<think>Paris lies on the Seine, and it has been the capital since 987.</think>{TEXTS['Russian'][0]}")
    assert (verdict.outcome, verdict.thought) == ("not_judged", "answered")
    assert judge(TEXTS["Russian"][0], begins_in_thought=True).outcome == "truncated"


def test_no_labelled_reply_loses_its_verdict() -> None:
    rows = [json.loads(line) for line in (DATA / "outcomes_labelled.jsonl").read_text(encoding="utf-8").splitlines()]
    verdicts = [judge(r["response"], begins_in_thought=r["begins_in_thought"], prompt=r["prompt"]).outcome for r in rows]
    assert "not_judged" not in verdicts
