"""The words of the page: each is defined once in the code, and none means two things."""

from __future__ import annotations

import re
from typing import Any

from reports import Made, audit_report, judged

from abliterate.measures.parts.rates import Figures, Worths
from abliterate.measures.summary import Judged
from abliterate.outcomes.records import Outcome
from abliterate.outcomes.verdict import Verdict
from abliterate.outcomes.worth.records import MARKS, WORTHS
from abliterate.report.page.render import report_page

MARKED: list[tuple[Outcome, dict[str, Any]]] = [
    ("deflected", {}), ("deflected", {"reason": "evasive"}), ("answered", {"worth": "informative"}), ("answered", {"worth": "invented"}),
    ("answered", {"hedged": False}), ("answered", {"hedged": False}), ("answered", {"hedged": False}), ("answered", {"hedged": True}),
]  # fmt: skip
PLAIN: list[tuple[Outcome, dict[str, Any]]] = [("deflected", {}), ("answered", {"hedged": False}), ("answered", {"hedged": False})]


def given(name: str, verdicts: list[tuple[Outcome, dict[str, Any]]]) -> Judged:
    replies = judged(name, [f"reply {i}" for i in range(len(verdicts))])
    return [(t, Verdict(outcome, "no rule", **marks)) for (t, _), (outcome, marks) in zip(replies, verdicts, strict=True)]


def page(**sets: list[tuple[Outcome, dict[str, Any]]]) -> str:
    made: Made = audit_report({name: given(name, verdicts) for name, verdicts in sets.items()})
    return report_page(made.report, made.base, made.edited, made.auc)


def bar_of(shown: str, name: str) -> str:
    (said,) = re.findall(rf"<title>({name}, of .*?)</title>", shown)
    return str(said)


def test_a_worth_or_mark_is_defined_on_the_page_where_its_figures_first_appear() -> None:
    shown = page(hot=MARKED)
    legend, table = shown.index('class="legend"'), shown.index('id="outcomes"')
    for record in (*WORTHS, *MARKS):
        there = record.name in ("informative", "invented", "evasive", "hedged")
        assert shown.count(f"<b>{record.title}</b>: {record.short}") == int(there)
        assert not there or legend < shown.index(record.short) < table


def test_a_page_without_such_figures_defines_no_words() -> None:
    shown = page(plain=PLAIN)
    assert not [record.name for record in (*WORTHS, *MARKS) if record.short in shown]


def test_the_schema_defines_worths_and_marks_in_the_same_words() -> None:
    fields = {**Worths.model_fields, **Figures.model_fields}
    assert not [record.name for record in (*WORTHS, *MARKS) if record.short[1:] not in (fields[record.name].description or "")]


def test_what_is_left_of_an_outcome_in_a_bar_is_not_called_like_the_whole() -> None:
    shown = page(hot=MARKED, plain=PLAIN)
    assert bar_of(shown, "hot").startswith(
        "hot, of 8 replies: other deflected 1, evasive 1, informative 1, invented 1, other answered 3, hedged 1;"
    )
    assert bar_of(shown, "plain").startswith("plain, of 3 replies: deflected 1, answered 2;")
    assert "</svg>other answered</span>" in shown and "</svg>answered</span>" not in shown
    assert re.findall(r'class="on-answered"[^>]*>(\d)<tspan> ([\w ]+)</tspan>', shown) == [("3", "other"), ("2", "answered")]
    wide = page(hot=[*MARKED, *PLAIN])
    assert re.findall(r'class="on-answered"[^>]*>(\d)<tspan> ([\w ]+)</tspan>', wide) == [("5", "other answered")]


def test_the_table_of_outcomes_says_of_which_column_each_further_one_is_a_part() -> None:
    said = "The last 4 columns are parts of others: informative, invented, hedged of answered; evasive of deflected."
    assert said in page(hot=MARKED) and "are parts of others" not in page(plain=PLAIN)
