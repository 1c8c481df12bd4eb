"""report.json: the keys that other programs rely on, and a name for every missing figure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from reports import reported, run_of

from abliterate.errors import CheckError
from abliterate.files import write_json, write_text
from abliterate.measures.summary import Judged
from abliterate.outcomes.records import OUTCOMES
from abliterate.replies.transcripts import Transcript
from abliterate.report.document import excerpt, kind_of, pairs_of

NO, YES = "I can't help with that.", "Heat the water and pour it over the leaves."
ROLES = {"bad": "target", "twin": "baseline", "safe": "keep", "plain": "harmless"}
RUN = {"settings": {"model": "m", "target": ["bad"], "max_new_tokens": 8}, "abliterate": "0"}
DRIFT = {"set": "plain", "ids": ["0", "1", "2"], "kl_first_token": [0.0, 0.1, 0.5]}
EDIT = {"tensors": 3}


def judged(name: str, *responses: str, lang: str = "en", facts: tuple[str, ...] = ()) -> Judged:
    made = [Transcript(name, str(i), "q", response, lang, topic="t", facts=facts) for i, response in enumerate(responses)]
    return [(t, t.verdict()) for t in made]


def compared() -> dict[str, Any]:
    """A report of four sets, before and after."""
    base = {
        "bad": [*judged("bad", NO, NO, facts=("tea",)), *judged("bad", "对不起，我无法回答这个问题。", lang="zh")],
        "twin": judged("twin", YES, YES),
        "safe": judged("safe", NO, NO, YES),
        "plain": judged("plain", YES, NO, YES),
    }
    edited = {**base, "bad": [*judged("bad", YES, "Tea it is.", facts=("tea",)), *judged("bad", "先烧水，再放茶叶。", lang="zh")]}
    return reported(RUN, ROLES, base, edited, DRIFT, {"chosen": {}}, EDIT, 0.05).document()


def audited() -> dict[str, Any]:
    return reported(RUN, {"bad": "audited"}, {"bad": judged("bad", NO, YES)}, None, None, None, None, 0.05).document()


def test_the_contracts_keys_are_there() -> None:
    report = compared()
    assert report["schema"] == "abliterate/report/1"
    assert {"schema", "sets", "by_topic", "keep_test", "controls", "drift", "edit", "not_measured"} <= set(report)
    for entry in report["sets"].values():
        assert {"role", "lang", "n", "base", "edited", "paired"} <= set(entry)
        for side in (entry["base"], entry["edited"]):
            assert {"outcomes", "refused", "withheld", "degenerate", "substance", "thought"} <= set(side)
            assert tuple(side["outcomes"]) == OUTCOMES and sum(side["outcomes"].values()) == entry["n"]
            assert all(set(side[rate]) - {"corrected"} == {"k", "n", "rate", "ci95"} for rate in ("refused", "withheld", "degenerate"))
            assert set(side["withheld"]["corrected"]) == {"rate", "ci95"}
        assert {name: set(test) for name, test in entry["paired"].items()} == {
            name: {"base_only", "edited_only", "mcnemar_p", "clusters"} for name in ("refused", "withheld", "degenerate")
        }
    assert {"set", "margin", "upper_bound", "holds"} <= set(report["keep_test"])
    assert {"kl_first_token", "kl_first_token_answered", "kl_sequence", "ce_base", "ce_edited"} <= set(report["drift"])


def test_sets_keep_their_order_role_language_and_count() -> None:
    sets = compared()["sets"]
    assert [(name, s["role"], s["lang"], s["n"]) for name, s in sets.items()] == [
        ("bad", "target", "en+zh", 3),
        ("twin", "baseline", "en", 2),
        ("safe", "keep", "en", 3),
        ("plain", "harmless", "en", 3),
    ]


def test_rates_count_what_was_judged() -> None:
    bad = compared()["sets"]["bad"]
    assert (bad["base"]["refused"]["k"], bad["edited"]["refused"]["k"]) == (3, 0)
    assert (bad["base"]["substance"]["k"], bad["edited"]["substance"]["k"], bad["edited"]["substance"]["n"]) == (0, 1, 2)
    assert bad["paired"]["refused"]["base_only"] == 3


def test_what_the_audit_adds_has_its_place() -> None:
    report = compared()
    assert {"tables", "against_control", "thought_by_answer", "unchanged"} <= set(report)
    assert [(row["topic"], row["lang"], row["n"]) for row in report["tables"]["bad"]] == [("t", "en", 2), ("t", "zh", 1)]
    assert report["tables"]["bad"][0]["edited"]["answered"] == 2
    assert set(report["by_topic"]["bad"]["t"]["paired"]) == {"base_only", "edited_only", "mcnemar_p", "holm_p"}
    assert [(t["set"], t["measure"]) for t in report["unchanged"]] == [
        ("twin", "withheld"), ("twin", "degenerate"), ("plain", "withheld"), ("plain", "degenerate")
    ]  # fmt: skip
    assert all(set(t) == {"set", "measure", "n", "margin", "upper_bound", "holds", "clusters"} for t in report["unchanged"])
    assert {tuple(t["clusters"]) for t in (*report["unchanged"], *report["keep_tests"])} == {("unit", "count", "unmoved_bound")}
    assert report["sets"]["bad"]["paired"]["withheld"]["clusters"] == {"unit": "topic", "count": 1, "least_p": 1.0}
    assert set(report["sets"]["bad"]["base"]["withheld_clustered"]) == {"ci95", "clusters", "warning"}


def test_pairs_and_thoughts_are_null_where_there_are_none_and_named_as_not_measured() -> None:
    report = audited()
    assert report["against_control"] is None and report["thought_by_answer"] is None and report["unchanged"] is None
    assert {"against_control", "thought_by_answer", "unchanged", "sets.bad.base.at_tokens"} <= set(report["not_measured"])


def linked(name: str, other: str, *responses: str) -> Judged:
    made = [Transcript(name, f"{name}{i}", "q", r, topic=f"t{i}", pair=f"{other}{i}", new_tokens=20) for i, r in enumerate(responses)]
    return [(t, t.verdict()) for t in made]


def test_rows_that_say_again_that_nothing_was_edited_are_not_listed_each() -> None:
    base = {"hot": linked("hot", "cold", NO, NO, "<think>\n\n</think>\n\n" + YES), "cold": linked("cold", "hot", YES, YES, YES)}
    report = reported(RUN, dict.fromkeys(base, "audited"), base, None, None, None, None, 0.05).document()
    assert report["against_control"][0]["set"] == "hot" and report["against_control"][0]["base"]["sensitive_only"] == 2
    assert report["thought_by_answer"]["hot"]["base"]["shut"] == {"withheld": 0, "not_withheld": 1}
    assert report["sets"]["hot"]["base"]["at_tokens"] and len(report["tables"]["hot"]) == 3
    assert not [path for path in report["not_measured"] if path.startswith(("tables", "against_control"))]
    assert not [path for path in report["not_measured"] if "warning" in path]


def test_every_key_of_the_report_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", text))))
    report = compared()
    bad = report["sets"]["bad"]
    keys = {*report, *bad, *bad["base"], *bad["paired"]["refused"], *bad["base"]["withheld_clustered"], *report["keep_test"]}
    keys |= {*report["tables"]["bad"][0], *report["by_topic"]["bad"]["t"]["paired"], *report["unchanged"][0]}
    assert keys - named == set()


def test_enough_topics_are_not_warned_of_and_that_is_nothing_unmeasured() -> None:
    base = {"hot": linked("hot", "cold", *[NO, YES] * 20), "cold": linked("cold", "hot", *[YES] * 40)}
    report = reported(RUN, dict.fromkeys(base, "audited"), base, None, None, None, None, 0.05).document()
    assert report["sets"]["hot"]["base"]["withheld_clustered"]["warning"] is None
    assert report["against_control"][0]["base"]["warning"] is None
    assert not [path for path in report["not_measured"] if "warning" in path]


def test_only_keep_sets_are_tested_for_non_inferiority() -> None:
    report = compared()
    assert [t["set"] for t in report["keep_tests"]] == ["safe"] and report["keep_test"] == report["keep_tests"][0]


def test_drift_is_also_given_over_the_prompts_that_base_answers() -> None:
    drift = compared()["drift"]
    assert (drift["n"], drift["n_answered"]) == (3, 2)
    assert drift["kl_first_token"] == pytest.approx(0.2)
    assert drift["kl_first_token_answered"] == pytest.approx(0.25)


def nulls(value: Any, path: str) -> Iterator[str]:
    if value is None:
        yield path
    elif isinstance(value, Mapping):
        for key, part in value.items():
            if key != "warning":  # null: nothing to warn of
                yield from nulls(part, f"{path}.{key}" if path else key)


@pytest.mark.parametrize("report", [compared(), audited()], ids=["compared", "audited"])
def test_every_null_is_listed_as_not_measured(report: dict[str, Any]) -> None:
    listed = report["not_measured"]
    missing = [path for path in nulls({**report, "run": {}}, "") if not any(path == name or path.startswith(f"{name}.") for name in listed)]
    assert missing == []


@pytest.mark.parametrize("report", [compared(), audited()], ids=["compared", "audited"])
def test_everything_listed_as_not_measured_is_null(report: dict[str, Any]) -> None:
    assert set(report["not_measured"]) <= set(nulls(report, ""))


def test_an_audit_has_no_edited_side() -> None:
    report = audited()
    assert report["sets"]["bad"]["edited"] is None and report["edit"] is None
    assert {"sets.bad.edited", "sets.bad.paired", "edit", "drift", "keep_test", "controls"} <= set(report["not_measured"])


def test_the_report_survives_json(tmp_path: Path) -> None:
    write_json(compared(), tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == compared()


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_drift_that_is_no_number_never_makes_invalid_json(tmp_path: Path, kl: float) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    base = {"plain": judged("plain", YES)}
    drift = {"set": "plain", "ids": ["0"], "kl_first_token": [kl]}
    try:
        report = reported(RUN, {"plain": "harmless"}, base, base, drift, None, None, 0.05).document()
        write_json(report, tmp_path / "report.json")
    except CheckError:
        return
    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path: Path) -> None:
    write_json({"old": 1}, tmp_path / "r.json")
    with pytest.raises(TypeError):
        write_json({"new": object()}, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_lone_surrogates_do_not_stop_a_file(tmp_path: Path) -> None:
    write_text("a\ud800b", tmp_path / "t.txt")
    assert (tmp_path / "t.txt").read_text(encoding="utf-8") == "a?b"


def test_an_excerpt_is_the_opening() -> None:
    assert excerpt("short") == "short"
    assert excerpt("x" * 1000).startswith("x" * 280) and len(excerpt("x" * 1000)) < 290


def test_pairs_put_both_answers_beside_their_prompt() -> None:
    base, edited = {"s": judged("s", NO, YES)}, {"s": judged("s", YES, YES)}
    found = [(pair.base.outcome, pair.edited.outcome) for pair in pairs_of(base, edited) if pair.edited]
    assert found == [("refused", "answered"), ("answered", "answered")]
    assert pairs_of(base, None)[0].edited is None


def test_a_long_thought_hides_no_answer() -> None:
    said = f"<|channel|>analysis<|message|>{'hm ' * 400}<|end|><|start|>assistant<|channel|>final<|message|>{YES}"
    (pair,) = [each.cut(280) for each in pairs_of({"s": judged("s", said)}, None)]
    assert pair.base.thought is not None
    assert pair.base.text == YES and pair.base.thought.startswith("hm hm") and len(pair.base.thought) < 150


def test_what_decided_a_verdict_stands_between_the_other_words() -> None:
    (pair,) = pairs_of({"s": judged("s", "Well. I can't help with that,\r\nsorry.")}, None)
    pieces = list(pair.base.pieces())
    assert "".join(text for text, _ in pieces) == pair.base.text == "Well. I can't help with that,\nsorry."
    assert [text for text, why in pieces if why == "rule"] and pieces[0][1] is None


@pytest.mark.parametrize("length", range(1, 60, 7))
def test_an_excerpt_keeps_the_words_that_decided_as_far_as_it_goes(length: int) -> None:
    (pair,) = pairs_of({"s": judged("s", "I'm sorry, but I can't assist with that. Try another question, please.")}, None)
    cut = pair.cut(length).base
    assert "".join(text for text, _ in cut.pieces()) == cut.text
    assert all(text and text in pair.base.text and "…" not in text for text, why in cut.pieces() if why)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({"model": "smollm2-refuser"}, "canned"), ({"base": "smollm2-refuser"}, "canned"), ({"base": "m"}, "natural"), ({}, "natural")],
)
def test_a_fixture_is_known_by_its_name_in_a_run_and_in_a_comparison(settings: dict[str, str], kind: str) -> None:
    assert kind_of(run_of({"settings": settings})) == kind
