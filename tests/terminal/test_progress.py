"""Progress without a terminal: one line at the end of a stage, and a few before it if the stage is long."""

from __future__ import annotations

import pytest

from abliterate.terminal.progress import FIRST, stage


class Clock:
    """A clock that advances only when a test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def heard(capsys: pytest.CaptureFixture[str], total: int, each: float, done: int, first: int = 0) -> list[str]:
    """Lines of a stage whose ``first`` parts are done at once, and whose next ``done`` parts take ``each`` seconds."""
    clock = Clock()
    with stage("work (parts)", total, clock) as advance:
        if first:
            advance(first)
        for _ in range(done):
            clock.now += each
            advance(1)
    return capsys.readouterr().err.splitlines()


def test_a_short_stage_says_one_line_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert heard(capsys, 5, 10.0, 5) == ["work (parts): 5 in 50.0 s"]


def test_a_long_stage_says_how_far_it_is_at_doubling_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    lines = heard(capsys, 100, 10.0, 100)
    assert [line.split(",")[0] for line in lines[:-1]] == [f"work (parts): {n} of 100" for n in (6, 12, 24, 48, 96)]
    assert lines[0] == "work (parts): 6 of 100, about 16 min left" and lines[-2] == "work (parts): 96 of 100, about 40 s left"
    assert lines[-1] == "work (parts): 100 in 1000.0 s"


def test_a_stage_in_few_long_parts_says_one_line_a_part_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    lines = heard(capsys, 3, 20 * FIRST, 3)
    assert lines[0] == "work (parts): 1 of 3, about 40 min left" and len([line for line in lines if "of 3" in line]) <= 3


def test_what_was_there_already_says_nothing_of_how_long_the_rest_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert heard(capsys, 42, 30.0, 2, first=10)[0] == "work (parts): 12 of 42, about 15 min left"


def test_a_stage_that_does_more_than_it_said_gives_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert heard(capsys, 2, 40.0, 3)[:1] == ["work (parts): 2 of 2"]


def test_hours_are_told_as_hours(capsys: pytest.CaptureFixture[str]) -> None:
    assert heard(capsys, 201, 60.0, 8)[3] == "work (parts): 8 of 201, about 3.2 h left"


def test_a_pace_is_not_told_from_the_first_few_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert heard(capsys, 201, 60.0, 4)[:3] == [f"work (parts): {done} of 201" for done in (1, 2, 4)]


def test_a_terminal_gets_a_bar_and_no_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert not [line for line in heard(capsys, 100, 10.0, 100) if "left" in line]


def test_what_a_stage_is_called_is_no_markup_of_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with stage("judged by classifier:[/model]", 1) as advance:
        advance(1)
    assert "classifier:[/model]" in capsys.readouterr().err
