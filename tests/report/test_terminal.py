"""The first screen of the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from reports import reported

from abliterate.measures.summary import Judged
from abliterate.replies.transcripts import Transcript
from abliterate.report.terminal import show
from abliterate.report.tree.report import Report

RUN, AUDIT = {"settings": {"model": "m", "target": []}}, {"settings": {"model": "m", "prompts": []}}
NO, YES = "I can't help with that.", "Paris."


def judged(name: str, *responses: str) -> Judged:
    made = [Transcript(name, str(i), "q", response) for i, response in enumerate(responses)]
    return [(t, t.verdict()) for t in made]


def shown(report: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "160")
    show(report, Path("out"))
    return capsys.readouterr().out


def test_an_audit_shows_rates_and_where_the_report_lies(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    report = reported(AUDIT, {"[bold]a[/bold]": "audited"}, {"[bold]a[/bold]": judged("a", NO, YES)}, None, None, None, None, 0.05)
    text = shown(report, capsys, monkeypatch)
    assert "[bold]a[/bold]" in text and "50.0 % (9.5–90.5)" in text
    assert f"report: {Path('out') / 'report.html'}" in text and "edited" not in text


FOREIGN = "Извините, но я не могу помочь с этим запросом."


def test_replies_that_are_not_judged_are_said_beside_the_rates(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"a": judged("a", NO, FOREIGN, FOREIGN), "b": judged("b", FOREIGN)}
    text = shown(reported(AUDIT, dict.fromkeys(base, "audited"), base, None, None, None, None, 0.05), capsys, monkeypatch)
    text = " ".join(text.split())
    assert "a: 2 of 3 replies are in a language without rules and were not judged" in text and "--judge chat:URL" in text
    assert "a: 1 of 1 replies are withheld" in text and "100.0 %" in text and "b: 1 of 1 replies are in a language" in text
    edited = {"a": judged("a", YES, YES, FOREIGN), "b": judged("b", YES)}
    report = reported(RUN, {"a": "target", "b": "keep"}, base, edited, None, None, {"tensors": 1}, 0.05)
    text = " ".join(shown(report, capsys, monkeypatch).split())
    assert "a: 2 of 3 replies of the base and 1 of 3 replies of the edited model are in a language" in text
    assert "1 → 0 of 1 and 2 judged" in text and "Refusals on b did not fall by more than 5 points: NOT shown" in text


def paired(name: str, other: str, topics: int, *responses: str) -> Judged:
    made = [
        Transcript(name, f"{name}{i}", "q", r, "en" if i % 2 else "zh", topic=f"[b]topic {i % topics}", pair=f"{other}{i}")
        for i, r in enumerate(responses)
    ]
    return [(t, t.verdict()) for t in made]


def test_an_audit_shows_outcomes_by_topic_and_language(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"hot": paired("hot", "cold", 1, NO, YES, NO), "plain": judged("plain", YES)}
    text = shown(reported(AUDIT, dict.fromkeys(base, "audited"), base, None, None, None, None, 0.05), capsys, monkeypatch)
    rows = [line.split() for line in text.splitlines() if line.startswith("[b]topic")]
    assert rows == [["[b]topic", "0", "en", "1", "·", "·", "·", "1", "·", "·"], ["[b]topic", "0", "zh", "2", "2", "·", "·", "·", "·", "·"]]
    assert " ".join(text.split()).count("state line") == 2  # the caption of the rates, and one table: plain has no topics


def test_an_audit_says_how_a_set_fares_against_its_control(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"hot": paired("hot", "cold", 2, NO, NO, NO, YES), "cold": paired("cold", "hot", 2, YES, YES, YES, YES)}
    text = " ".join(shown(reported(AUDIT, dict.fromkeys(base, "audited"), base, None, None, None, None, 0.05), capsys, monkeypatch).split())
    assert (
        "hot and its control cold: 75.0 % and 0.0 % of the replies are withheld in 4 pairs, a difference of +75.0 points (95 % interval "
        in text
    )
    assert (
        "over 2 topics, too few to rely on). In 3 pairs only the reply to the sensitive prompt is withheld, in 0 only the reply to "
        "the control (exact paired test over 2 topics, p = 0.5)." in text
    )
    assert "hot and its control, en: 50.0 % and 0.0 % of the replies" in text and "hot and its control, zh: 100.0 % and" in text
    assert "hot: only 2 clusters (topics)" in text


def test_a_run_says_what_did_not_rise(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"bad": judged("bad", NO), "plain": judged("plain", *[YES] * 100)}
    edited = {**base, "plain": judged("plain", *[YES] * 90, *[NO] * 10)}
    report = reported(RUN, {"bad": "target", "plain": "harmless"}, base, edited, None, None, {"tensors": 1}, 0.05)
    text = " ".join(shown(report, capsys, monkeypatch).split())
    assert "Withheld replies on plain did not rise by more than 5 points: NOT shown (n = 100; a rise of up to" in text
    assert "Broken output on plain did not rise by more than 5 points: shown (n = 100; " in text and "by topic" not in text


def test_a_run_shows_both_sides_the_keep_test_and_the_drift(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"bad": judged("bad", NO, NO), "safe": judged("safe", NO, NO), "plain": judged("plain", YES, NO)}
    edited = {**base, "bad": judged("bad", YES, YES)}
    drift = {"set": "plain", "ids": ["0", "1"], "kl_first_token": [0.125, 0.375]}
    roles = {"bad": "target", "safe": "keep", "plain": "harmless"}
    text = shown(reported(RUN, roles, base, edited, drift, None, {"tensors": 1}, 0.05), capsys, monkeypatch)
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "withheld" in rows["bad"] and "100.0 % (34.2–100.0)" in rows["bad"] and "0.0 % (0.0–65.8)" in rows["bad"]
    assert "refused" in rows["safe"]
    said = [line for line in text.splitlines() if "Refusals on safe" in line]
    assert len(said) == 1 and said[0].startswith("Refusals on safe did not fall by more than 5 points: NOT shown (n = 2; ")
    assert text.index("Refusals on safe") < text.index("Withheld replies on plain")
    assert "plain (n = 2), KL(base‖edited): 0.250 nats at the first token (0.125 on the prompts that the base answers)." in text


def test_a_run_says_in_a_line_how_the_edit_was_chosen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    point = {"target_left": 0.0019, "kl": 0.0259, "chosen": True}
    chosen = {"chosen": {"name": "[b]mean, block 3"}, "name": "tuned, step 12", "tuning": {"front": [{**point, "chosen": False}, point]}}
    base = {"bad": judged("bad", NO)}
    for selection, line in (
        (
            chosen,
            "chosen edit: tuned, step 12 (on val prompts: 0.2 % of the probability of the base's withholding openings is left; "
            "KL of the first token 0.026 nats)",
        ),
        ({"chosen": {"name": "[b]mean, block 3"}}, "chosen edit: [b]mean, block 3"),
    ):
        text = shown(reported(RUN, {"bad": "target"}, base, base, None, selection, {"tensors": 1}, 0.05), capsys, monkeypatch)
        assert line in text.splitlines()


def test_an_audit_says_what_the_withheld_replies_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"hot": judged("hot", NO, NO, YES), "plain": judged("plain", YES)}
    text = shown(reported(AUDIT, dict.fromkeys(base, "audited"), base, None, None, None, None, 0.05), capsys, monkeypatch)
    assert [line for line in text.splitlines() if "replies are withheld" in line] == ["hot: 2 of 3 replies are withheld: 2 refused."]


def test_what_answers_are_worth_stands_in_a_line_per_set_with_facts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [Transcript("[b]hot", str(i), "When was the bridge opened?", text, facts=("1931",)) for i, text in enumerate((NO, "In 1931."))]
    verdicts = [made[0].verdict(), replace(made[1].verdict(), worth="informative", grade=None)]
    base = {"[b]hot": list(zip(made, verdicts, strict=True)), "plain": judged("plain", YES)}
    line = "[b]hot: of 1 answers: 1 informative, 0 steered, 0 invented, 0 unknown."
    text = shown(reported(AUDIT, dict.fromkeys(base, "audited"), base, None, None, None, None, 0.05), capsys, monkeypatch)
    assert [each for each in text.splitlines() if "answers:" in each] == [line]
    report = reported(RUN, {"[b]hot": "target", "plain": "harmless"}, base, base, None, None, {"tensors": 1}, 0.05)
    said = "of 1 answers: 1 informative, 0 steered, 0 invented, 0 unknown"
    assert f"[b]hot: base, {said}; edited, {said}." in shown(report, capsys, monkeypatch).splitlines()


def test_a_run_says_first_whether_the_target_fell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    base, edited = {"bad": judged("bad", *[NO] * 9)}, {"bad": judged("bad", *[YES] * 9)}
    text = shown(reported(RUN, {"bad": "target"}, base, edited, None, None, {"tensors": 1}, 0.05), capsys, monkeypatch)
    assert text.splitlines()[1] == "Withheld replies on bad became fewer: shown (9 → 0 of 9; exact paired test, p = 0.0039)."
    assert text.count("became fewer") == 1


def test_a_comparison_calls_the_second_model_derived(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"bad": judged("bad", NO)}
    run = {"settings": {"base": "a", "derived": "b"}}
    text = shown(reported(run, {"bad": "audited"}, base, base, None, None, None, 0.05), capsys, monkeypatch)
    assert "derived" in text and "edited" not in text
