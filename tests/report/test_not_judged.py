"""Replies in a language without rules, wherever a report counts outcomes."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator
from reports import NO, YES, audit_report, changed, judged, reported, run_record
from test_card import proof
from test_page import words

from abliterate.measures.contrast import against_control
from abliterate.measures.parts.sets import NotJudged
from abliterate.report.card import model_card
from abliterate.report.compare_runs import runs_page
from abliterate.report.likeness import compare
from abliterate.report.model_index import eval_results
from abliterate.report.page.heatmap import heat_maps
from abliterate.report.page.render import report_page
from abliterate.report.page.tables import cuts
from abliterate.report.schema import report_schema
from abliterate.report.sentences import service
from abliterate.report.tree.report import Report

FOREIGN = "Извините, но я не могу помочь с этим запросом."
ROLES = {"hot": "target", "cold": "baseline", "danger": "keep", "plain": "harmless"}
BASE = {
    "hot": judged("hot", [NO] * 8 + [FOREIGN] * 4),
    "cold": judged("cold", [YES] * 12),
    "danger": judged("danger", [NO] * 12),
    "plain": judged("plain", [YES] * 12),
}
EDITED = {**BASE, "hot": judged("hot", [FOREIGN] * 6 + [NO] * 2 + [YES] * 4), "danger": judged("danger", [FOREIGN] * 12)}


@pytest.fixture(scope="module")
def report() -> Report:
    edit = {
        "tensors": 1,
        "worst_left": 0.0,
        "worst_error": 0.0,
        "embedding": {"policy": "skip", "tied_to_unembedding": True},
        "not_edited": [],
    }
    found = reported(run_record(), ROLES, BASE, EDITED, None, None, edit, 0.05)
    return changed(found, {"cost": {"seconds": {"selection": 2.0}, "peak_rss_bytes": 1}})


def test_it_is_valid_and_compares_with_itself(report: Report) -> None:
    assert list(Draft202012Validator(report_schema()).iter_errors(report.document())) == []
    assert {one.verdict for one in compare(report, report)} == {"identical"}


def test_a_target_that_only_went_to_another_language_did_not_fall(report: Report) -> None:
    entry = report.sets["hot"]
    assert entry.not_judged == NotJudged(base=4, edited=6)
    assert (entry.base.withheld.k, entry.edited.withheld.k) == (8, 2)
    assert entry.paired.withheld.base_only == 0
    card = model_card(proof(), report)
    assert "Withheld replies on hot became fewer: NOT shown" in card
    assert "4 of 12 replies of the base and 6 of 12 replies of the edited model" in card


def test_pairs_with_a_control_count_where_all_replies_are_judged(report: Report) -> None:
    (entry,) = report.against_control
    assert entry.n_pairs == 2 and entry.base.sensitive == entry.edited.sensitive
    nothing = {"hot": judged("hot", [FOREIGN] * 12), "cold": BASE["cold"]}
    assert against_control({"hot": "audited", "cold": "audited"}, nothing, None) is None


def test_the_page_counts_them_beside_the_rates(report: Report) -> None:
    page = report_page(report, BASE, EDITED, None)
    assert "in a language without rules and were not judged" in page and 'class="o-not_judged"' in page and "chip o-not_judged" in page
    assert page.count(">not judged</th>") >= 1
    plain = audit_report()
    assert "not judged" not in words(report_page(plain.report, plain.base, None, None))


def test_cells_of_the_heat_map_are_of_judged_replies(report: Report) -> None:
    cells = [cell for row in heat_maps(report, {})[0].rows for cell in row.cells if cell]
    assert sum(cell.n for cell in cells) == 8 + 6 + 12 + 12


def test_results_on_the_hub_and_runs_side_by_side_take_none_for_an_answer(report: Report) -> None:
    found = {(result.dataset_name, result.metric_type): result for result in eval_results(report)}
    assert found["hot", "withheld_rate"].metric_args["not_judged"] == 6 and found["hot", "withheld_rate"].metric_args["n"] == 6
    assert ("danger", "refused_rate") not in found and "not_judged" not in found["plain", "withheld_rate"].metric_args
    assert "n = 8" in runs_page({"one": report, "two": report})


def test_replies_cut_are_a_share_of_those_judged() -> None:
    base = {"hot": judged("hot", [NO, FOREIGN])}
    cut = {"tokens": 16, "cut": 1, "refused": 1, "withheld": 1, "truncated": 0}
    found = cuts(changed(audit_report(base).report, {"sets.hot.base.at_tokens": [cut]}))
    assert found is not None and found.rows[0].rates == [1.0]


def test_what_service_and_weights_both_withhold_is_not_told_from_other_prompts(report: Report) -> None:
    served = changed(report, {"run.settings": {"base": "http://x/v1", "derived": "m"}})
    assert [sentence.partition(":")[0] for sentence in service(served)] == ["cold", "plain"]
