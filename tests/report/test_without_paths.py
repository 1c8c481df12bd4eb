"""Nothing that is shown to others says where folders, files and servers are."""

from __future__ import annotations

from dataclasses import replace
from typing import get_origin

import pytest
from pydantic.fields import FieldInfo
from reports import Made, audit_report, changed, run_of, run_report, weights_report
from test_card import proof

from abliterate.config import AuditConfig, CompareConfig, RunConfig
from abliterate.report.card import model_card
from abliterate.report.compare_runs import runs_page
from abliterate.report.page.render import report_page
from abliterate.report.sentences import weights
from abliterate.report.without_paths import said_without_paths, without_paths

SECRET = "zanzibar"
PLACES = [
    f"/home/{SECRET}/models/mine",
    f"~/{SECRET}/mine",
    f"../{SECRET}/mine.toml",
    f"./{SECRET}/mine",
    f"http://{SECRET}.internal:8000/v1",
    f"C:\\Users\\{SECRET}\\mine",
]
RELATIVE = f"{SECRET}/models/mine.jsonl"
NO_PLACES = {"revision", "base_revision", "derived_revision", "device", "max_memory", "thinking", "estimators", "engine", "edited_engine"}


def free(field: FieldInfo) -> bool:
    """Whether a setting takes any text."""
    return "str" in str(field.annotation) and get_origin(field.annotation) is not bool and "Literal" not in str(field.annotation)


TEXTS = {
    made: [name for name, field in config.model_fields.items() if free(field)]
    for made, config in (("run", RunConfig), ("audit", AuditConfig), ("compare", CompareConfig))
}
MADE = {"run": run_report, "audit": audit_report, "compare": weights_report}


def all_shown(made: Made) -> str:
    page = report_page(made.report, made.base, made.edited, made.auc)
    card = model_card(proof("tiny"), made.report) if made.report.edit else ""
    return page + card + runs_page({"one": made.report, "two": made.report})


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", list(TEXTS))
def test_no_setting_says_where_anything_lies(command: str, place: str) -> None:
    made = MADE[command]()
    many = {"target", "baseline", "keep", "prompts", "lm_eval", "estimators"}
    settings = {f"run.settings.{name}": [place, "harmful"] if name in many else place for name in TEXTS[command]}
    assert SECRET not in all_shown(replace(made, report=changed(made.report, settings)))


@pytest.mark.parametrize("command", list(TEXTS))
def test_a_place_that_is_named_relative_to_here_is_one_too(command: str) -> None:
    for name in set(TEXTS[command]) - NO_PLACES:
        assert SECRET not in str(without_paths(run_of({"settings": {name: RELATIVE}})).settings), name
        assert SECRET not in str(without_paths(run_of({"settings": {name: [RELATIVE]}})).settings), name


def test_nothing_else_that_the_record_knows_says_it_either() -> None:
    for made in (run_report(), audit_report(), weights_report()):
        place = {"model_path": PLACES[0], "hub_id": None, "revision": None}
        known = {
            **{f"run.{key}": value for key, value in place.items()},
            "run.derived": place,
            "run.reference": place,
            "run.resolved.engines": {"base": {"kind": "server", "url": PLACES[4], "model": PLACES[0]}},
            "judge": {
                "name": f"classifier:{PLACES[0]}", "kappa": 0.5, "kappa_ci95": None, "n": 3, "disagreements": 1, "unjudged": 0,
                "by_set": {},
            },
        }  # fmt: skip
        assert SECRET not in all_shown(replace(made, report=changed(made.report, known)))


def test_models_of_the_hub_are_called_by_their_ids_in_a_comparison_too() -> None:
    settings, derived = {"base": "qwen3-8b", "derived": "mine/edited"}, {"model_path": None, "hub_id": "mine/edited"}
    run = run_of({"settings": settings, "hub_id": "Qwen/Qwen3-8B", "derived": derived})
    assert without_paths(run).settings == {"base": "Qwen/Qwen3-8B", "derived": "mine/edited"}
    here = without_paths(run_of({"settings": {"base": "clients/mine", "derived": "/srv/edited"}, "derived": {"model_path": None}}))
    assert here.settings == {"base": "mine", "derived": "edited"}


def test_why_weights_were_not_compared_is_said_without_where_they_lie() -> None:
    run = {"run.settings": {"base": RELATIVE, "derived": PLACES[0]}, "run.derived": {"model_path": PLACES[0]}}
    why = {"compared": False, "why": f"{PLACES[0]}: two files hold lm_head.weight; {RELATIVE} holds one"}
    made = changed(weights_report().report, {**run, "weights": why})
    (said,) = weights(made)
    assert said == "weights not compared: mine: two files hold lm_head.weight; mine.jsonl holds one."
    assert said_without_paths("nothing of the kind", made.run) == "nothing of the kind"


def test_what_is_no_place_stays_as_it_is() -> None:
    run = run_of({"settings": {"model": "qwen3-8b", "device": "cuda:1", "engine_model": "Qwen/Qwen3-8B"}, "abliterate": "3"})
    assert without_paths(run) == run
