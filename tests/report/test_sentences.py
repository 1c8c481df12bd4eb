"""What the report says in words."""

from __future__ import annotations

from typing import Any

import pytest

from abliterate.evaluation.summary import rate
from abliterate.report.sentences import broken, service, thoughts


def entry(base: dict[str, Any], edited: dict[str, Any] | None, base_only: int = 0, edited_only: int = 0) -> dict[str, Any]:
    paired = None if edited is None else {"withheld": {"base_only": base_only, "edited_only": edited_only}}
    return {"n": 100, "base": base, "edited": edited, "paired": paired}


def side(withheld: int, degenerate: int = 0, thought: dict[str, int] | None = None) -> dict[str, Any]:
    return {"withheld": rate(withheld, 100), "degenerate": rate(degenerate, 100), "thought": thought}


def report(of: dict[str, Any], **settings: str) -> dict[str, Any]:
    return {"sets": {"hot": of}, "run": {"settings": settings}}


def test_replies_that_break_are_said_where_fewer_are_withheld() -> None:
    (line,) = broken(report(entry(side(90, 10), side(10, 44))))
    assert line.startswith("Broken output of hot rose from 10.0 % to 44.0 %")


@pytest.mark.parametrize(("before", "after"), [((90, 10), (10, 12)), ((10, 10), (20, 60)), ((90, 44), (10, 10))])
def test_a_rise_within_its_interval_or_without_a_fall_of_what_is_withheld_is_not_said(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    assert not list(broken(report(entry(side(*before), side(*after)))))
    assert not list(broken(report(entry(side(*before), None))))


def test_empty_thoughts_are_told_of_both_models() -> None:
    found = entry(side(90, 0, {"empty": 89, "answered": 11}), side(10, 0, {"answered": 100}))
    assert list(thoughts(report(found))) == ["empty thoughts of hot: 89.0 % → 0.0 % of 100."]
    assert list(thoughts(report(entry(side(1), side(1))))) == []


@pytest.mark.parametrize(("base", "derived", "first"), [("http://h/v1", "folder", "the service"), ("folder", "http://h/v1", "the weights")])
def test_what_a_service_withholds_beside_its_weights_is_told(base: str, derived: str, first: str) -> None:
    (line,) = service(report(entry(side(60), side(45), 20, 5), base=base, derived=derived))
    other = "the weights" if first == "the service" else "the service"
    assert line == (f"hot: 40 of 100 prompts are withheld by the service and by the weights, 20 by {first} alone, 5 by {other} alone.")


def test_two_models_of_one_kind_say_nothing_of_a_service() -> None:
    assert not list(service(report(entry(side(1), side(1)), base="a", derived="b")))
    assert not list(service(report(entry(side(1), side(1)), model="a")))
