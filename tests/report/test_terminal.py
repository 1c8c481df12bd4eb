"""The first screen of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from abliterate.evaluation.summary import Judged
from abliterate.evaluation.transcripts import Transcript
from abliterate.report.document import report_document
from abliterate.report.terminal import show

RUN = {"settings": {"model": "m"}}
NO, YES = "I can't help with that.", "Paris."


def judged(name: str, *responses: str) -> Judged:
    made = [Transcript(name, str(i), "q", response) for i, response in enumerate(responses)]
    return [(t, t.verdict()) for t in made]


def shown(report: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "160")
    show(report, Path("out"))
    return capsys.readouterr().out


def test_an_audit_shows_rates_and_where_the_report_lies(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_document(RUN, {"[bold]a[/bold]": "audited"}, {"[bold]a[/bold]": judged("a", NO, YES)}, None, None, None, None, 0.05)
    text = shown(report, capsys, monkeypatch)
    assert "[bold]a[/bold]" in text and "50.0 % (1/2, 95 % 9.5–90.5)" in text
    assert f"report: {Path('out') / 'report.html'}" in text and "edited" not in text


def test_a_run_shows_both_sides_the_keep_test_and_the_drift(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"bad": judged("bad", NO, NO), "safe": judged("safe", NO, NO), "plain": judged("plain", YES, NO)}
    edited = {**base, "bad": judged("bad", YES, YES)}
    drift = {"set": "plain", "ids": ["0", "1"], "kl_first_token": [0.125, 0.375]}
    roles = {"bad": "target", "safe": "keep", "plain": "harmless"}
    text = shown(report_document(RUN, roles, base, edited, drift, None, {"tensors": 1}, 0.05), capsys, monkeypatch)
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "withheld" in rows["bad"] and "100.0 % (2/2" in rows["bad"] and "0.0 % (0/2" in rows["bad"]
    assert "refused" in rows["safe"]
    assert "kept refusals of safe did not fall by more than 5 points: NOT shown" in text
    assert "plain (n=2): 0.250 nats, 0.125 over those that base answers" in text
