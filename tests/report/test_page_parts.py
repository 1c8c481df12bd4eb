"""Parts of the page: first screen, heat maps, transcripts, provenance."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reports import LOOP, NO, YES, audit_report, changed, filled, judged, run_of, run_record, run_report, weights_report

from abliterate.cli.options import build
from abliterate.config import RunConfig
from abliterate.measures.parts.thoughts import Answers, Crossed, ThoughtByAnswer
from abliterate.measures.summary import Judged
from abliterate.outcomes.records import Outcome
from abliterate.outcomes.verdict import Verdict
from abliterate.report.bars.bars import bar_groups
from abliterate.report.bars.kinds import KINDS, Kind
from abliterate.report.first import first_screen
from abliterate.report.page import render
from abliterate.report.page.browser import browser
from abliterate.report.page.escaping import language, shown
from abliterate.report.page.heatmap import HeatMap, heat_maps
from abliterate.report.page.render import report_page
from abliterate.report.page.tables import ThoughtRow, cuts, thoughts
from abliterate.report.page.topics import most_withheld_first, worth_of_topics
from abliterate.report.provenance import citation, command, folder_name, missing, model_name, stages
from abliterate.report.rates import drift_rows, nats_end, round_up
from abliterate.report.tree.report import Report
from abliterate.runs.document import Cost, RunRecord


def maps_of(report: Report) -> list[HeatMap]:
    return heat_maps(report, {})


def factual(name: str) -> Judged:
    """Eleven replies to questions: withheld ones, answers with facts of every worth but unknown, and two without facts."""
    given: list[tuple[Outcome, dict[str, Any]]] = [
        ("refused", {}), ("deflected", {}), ("deflected", {"reason": "evasive"}), ("deflected", {"reason": "evasive"}),
        ("answered", {"worth": "informative"}), ("answered", {"worth": "steered", "grade": 2}), ("answered", {"worth": "invented"}),
        ("answered", {"worth": "invented"}), ("answered", {"worth": "invented"}), ("answered", {"hedged": False}),
        ("answered", {"hedged": True}),
    ]  # fmt: skip
    replies = judged(name, [f"reply {i}" for i in range(len(given))])
    return [
        (t, Verdict(outcome, "no rule", **marks, substance=None if "hedged" in marks else marks.get("worth") == "informative"))
        for (t, _), (outcome, marks) in zip(replies, given, strict=True)
    ]


def factual_with_substance(name: str) -> Judged:
    return [(t, replace(v, substance=v.worth == "informative")) for t, v in factual(name)]


def test_the_first_screen_has_bars_for_each_role() -> None:
    groups = {group.key: group for group in first_screen(run_report().report).groups}
    assert list(groups) == ["target", "keep", "answered"]
    assert [each.name for each in groups["answered"].sets] == ["cold", "plain"]
    (kept,) = groups["keep"].sets
    assert [[(said, rate.k) for said, rate in bar.rates] for bar in kept.bars] == [[("refused", 11)], [("refused", 7)]]
    (hot,) = groups["target"].sets
    assert [dict(bar.rates)["broken"].k for bar in hot.bars] == [1, 2]


def test_an_audit_has_rates_without_an_after_and_no_drift() -> None:
    first = first_screen(audit_report().report)
    assert [group.key for group in first.groups] == ["audited"]
    assert all(len(each.bars) == 1 for each in first.groups[0].sets) and first.drift is None and first.tests == []


def test_a_test_is_said_once_and_not_again_among_the_findings_in_words() -> None:
    first = first_screen(run_report().report)
    assert [claim.sentence() for claim in first.failed] == [claim.sentence() for claim in first.keeps if not claim.shown]
    assert first.tests == [*first.targets, *first.keeps, *first.others] and not {claim.sentence() for claim in first.tests} & set(
        first.said
    )


def test_drift_stands_on_a_scale_that_holds_its_intervals() -> None:
    found = drift_rows(run_report().report.drift)
    assert found is not None and found.end in (0.1, 0.2)
    assert all(0 <= row.ci95[0] <= row.value <= row.ci95[1] <= found.end for row in found.rows)


@pytest.mark.parametrize(("value", "end"), [(0.1, 0.1), (0.11, 0.2), (0.3, 0.5), (0.51, 1.0), (7.0, 10.0), (10.0, 10.0), (11.0, 20.0)])
def test_scales_end_at_round_numbers(value: float, end: float) -> None:
    assert round_up(value) == end


def test_controls_share_one_scale() -> None:
    found = run_report().report.controls
    assert found is not None and nats_end(found) == 0.2


def test_the_parts_of_a_bar_fill_it() -> None:
    made = [run_report().report, audit_report({"hot": factual("hot")}).report]
    bars = [bar for report in made for group in bar_groups(report) for each in group.sets for bar in each.bars]
    assert len(bars) == 9
    for bar in bars:
        assert sum(part.share for part in bar.parts) == pytest.approx(100) and bar.parts[0].start == 0
        assert sum(part.k for part in bar.parts) == bar.n
        assert [part.start for part in bar.parts[1:]] == pytest.approx([part.start + part.share for part in bar.parts[:-1]])


def test_a_bar_tells_answers_by_their_worth_and_evasive_replies_from_the_deflected() -> None:
    report = audit_report({"hot": factual("hot")}).report
    ((each,),) = [group.sets for group in bar_groups(report)]
    (bar,) = each.bars
    assert [(part.kind.name, part.k) for part in bar.parts] == [
        ("refused", 1), ("deflected", 1), ("evasive", 2), ("informative", 1), ("steered", 1), ("invented", 3), ("answered", 1),
        ("hedged", 1),
    ]  # fmt: skip
    assert [(said, rate.k, rate.n) for said, rate in bar.rates] == [("withheld", 4, 11), ("informative", 1, 9), ("invented", 3, 9)]
    assert first_screen(report).worth == ["hot: of 5 answers: 1 informative, 1 steered, 3 invented, 0 unknown."]


def test_shares_of_informative_answers_before_and_after_are_shares_of_the_same_prompts() -> None:
    """An edit that turns refusals into inventions loses no informative answer, though their share of the answers falls."""
    base = factual("hot")
    edited = [(t, replace(v, outcome="answered", worth="invented") if v.outcome == "refused" else v) for t, v in base]
    groups = [bar_groups(audit_report({"hot": made}).report) for made in (base, edited)]
    assert [[(said, rate.k, rate.n) for said, rate in group.sets[0].bars[0].rates[1:]] for (group,) in groups] == [
        [("informative", 1, 9), ("invented", 3, 9)], [("informative", 1, 9), ("invented", 4, 9)],
    ]  # fmt: skip


def test_the_interval_of_a_bar_leaves_out_what_was_not_judged() -> None:
    """Half of the replies are not judged: on the bar of all replies, the interval of the others is half as far from its beginning."""
    made = [(t, replace(v, outcome=("refused", "not_judged")[i % 2])) for i, (t, v) in enumerate(judged("hot", [NO] * 8))]
    ((each,),) = [group.sets for group in bar_groups(audit_report({"hot": made}).report)]
    (bar,) = each.bars
    ci95 = bar.rates[0][1].ci95
    assert ci95 is not None and bar.bounds == pytest.approx((50 * ci95[0], 50 * ci95[1]))


def test_topics_of_which_most_is_withheld_come_first_and_the_others_by_name() -> None:
    replies = [YES, YES, NO, NO, YES, NO, NO, YES]
    made = [(replace(t, topic="dbac"[i // 2], lang="en"), v) for i, (t, v) in enumerate(judged("hot", replies))]
    report = audit_report({"hot": made}).report
    assert [row.topic for row in maps_of(report)[0].rows] == ["b", "a", "c", "d"]
    assert [row.topic for row in most_withheld_first(report.tables["hot"])] == ["b", "a", "c", "d"]


def test_topics_of_a_set_with_facts_say_what_their_answers_are_worth() -> None:
    base = {"hot": factual("hot"), "plain": judged("plain", [YES] * 4)}
    edited = {"hot": [(t, replace(v, worth="unknown") if v.worth else v) for t, v in base["hot"]], "plain": base["plain"]}
    found = worth_of_topics(base, edited)
    assert list(found) == ["hot"] and found["hot"]["topic 1"] == ["1 → 0", "1 → 0", "2 → 0", "0 → 4"]
    maps = heat_maps(audit_report(base).report, worth_of_topics(base, None))
    assert [(each.name, len(each.worths), each.rows[0].worth) for each in maps if each.name == "plain"] == [("plain", 0, [])]
    assert [each.worths for each in maps if each.name == "hot"] == [("informative", "steered", "invented", "unknown")]


def test_a_heat_map_sets_each_topic_beside_its_control_in_each_language() -> None:
    maps = {found.name: found for found in maps_of(run_report().report)}
    assert list(maps) == ["hot", "danger", "plain"]  # cold is shown beside hot
    hot = maps["hot"]
    assert hot.control == "cold" and hot.langs == ["en", "zh"]
    assert hot.columns == [("hot", "base"), ("hot", "edited"), ("cold", "base"), ("cold", "edited")]
    first = hot.rows[0]
    assert first.topic == "topic 0" and [(c.k, c.n) for c in first.cells if c] == [(2, 2), (0, 2), (1, 2), (0, 2)] * 2
    assert [c.level for c in first.cells[:3] if c] == [10, 0, 5]


def test_a_set_without_topics_has_its_categories_in_one_column() -> None:
    danger = next(found for found in maps_of(run_report().report) if found.name == "danger")
    assert danger.langs == ["en+zh"] and [row.topic for row in danger.rows] == ["fire", "water"]
    assert sum(row.cells[0].n for row in danger.rows if row.cells[0]) == 12


def test_a_map_of_many_topics_is_cut_and_says_so() -> None:
    made = audit_report({"hot": judged("hot", [YES] * 1000)})
    found = maps_of(made.report)[0]
    assert len(found.rows) == 200 and found.left_out == 50


def test_all_transcripts_are_shown_where_there_is_room() -> None:
    made = run_report()
    found = browser(made.base, made.edited, "excerpt", 10**6)
    assert found is not None and len(found.pairs) == found.total == 48 and found.length == 280
    assert found.sets == ["hot", "cold", "danger", "plain"] and found.langs == ["en", "zh"]
    assert [kind.name for kind in found.outcomes] == ["refused", "answered", "degenerate"] and not found.reasons
    assert len(found.listed) == 30


def test_shorter_excerpts_come_before_fewer_transcripts() -> None:
    base = {"a": judged("a", ["tea " * 1000] * 50)}
    lengths = [browser(base, None, "excerpt", room) for room in (10**6, 48_000, 42_000)]
    assert [(len(found.pairs), found.length) for found in lengths if found] == [(50, 280), (50, 180), (50, 110)]


def test_what_is_left_out_is_taken_evenly_so_that_rare_outcomes_stay() -> None:
    base = {name: judged(name, [YES] * 400 + [NO, LOOP], prompt="q") for name in ("hot", "cold")}
    found = browser(base, None, "excerpt", 60_000)
    assert found is not None and 20 < len(found.pairs) < found.total == 804
    for name in base:
        outcomes = [pair.base.outcome for pair in found.pairs if pair.set == name]
        assert {"refused", "degenerate", "answered"} == set(outcomes)
        assert outcomes == sorted(outcomes, key=["answered", "refused", "degenerate"].index)  # the order is kept


def test_whole_transcripts_know_no_room_and_none_shows_none() -> None:
    base = {"a": judged("a", ["tea " * 10_000])}
    found = browser(base, None, "full", 10)
    assert found is not None and found.pairs[0].base.text == "tea " * 10_000 and found.length is None
    assert browser(base, None, "none", 10**6) is None and browser({}, None, "excerpt", 10**6) is None


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain\ntext\t漢", "plain\ntext\t漢"),
        ("\x00\x1b\x7f", "␀␛␡"),
        ("\ud800a\udfff", "\ufffda\ufffd"),
        ("\x85\ufffe", "\ufffd\ufffd"),
        ("a\r\nb\rc", "a\nb␍c"),
        ("\u202eabc\u2067", "\u202eabc\u2067"),
    ],
)
def test_every_character_is_visible_or_harmless(text: str, seen: str) -> None:
    assert shown(text) == seen
    shown(text).encode()


def test_only_a_language_is_said_to_be_one() -> None:
    assert [language(tag) for tag in ("en", "zh-Hant", "zh_CN", "<b>", "", "english")] == ["en", "zh-Hant", None, None, None, None]


def test_the_command_asks_for_the_same_again() -> None:
    given = {"model": "my models/a", "target": ["hot", "cold;rm"], "keep": ["danger"], "limit": 5, "trust_remote_code": True}
    config = build(RunConfig, None, dict(given))
    words = shlex.split(command(run_of({"settings": config.model_dump(mode="json")})))
    assert words[:2] == ["abliterate", "run"] and words[-2:] == ["--out", "RUN"]
    assert words[words.index("--target") + 1 :][:2] == ["hot", "cold;rm"] and words[words.index("--model") + 1] == "my models/a"
    assert {"--trust-remote-code", "--limit", "--keep"} < set(words) and "--margin" not in words and "--baseline" not in words


@pytest.mark.parametrize(("made", "which"), [(run_report, "run"), (audit_report, "audit"), (weights_report, "compare")])
def test_the_command_is_the_one_that_made_the_folder(made: Any, which: str) -> None:
    run = made().report.run
    assert run.kind == which and command(run).startswith(f"abliterate {which} --")


def test_the_cost_of_stages_is_set_against_the_longest() -> None:
    assert [stage.share for stage in stages(Cost(seconds={"a": 30.0, "b": 120.0}, peak_rss_bytes=5))] == [25, 100]
    assert stages(Cost(seconds={}, peak_rss_bytes=0)) == []


def test_what_was_not_measured_is_said_in_words() -> None:
    made = run_report()
    assert not [said for said in missing(made.report) if "random" in said or "benchmarks" in said]
    assert "public benchmarks" in missing(audit_report().report)
    assert missing(weights_report().report)[0] == "what the models reply (nothing was asked)"
    bare = changed(made.report, {"controls": None, "not_measured": ["controls", "keep_test"]})
    assert len(missing(bare)) == 2


def test_what_needs_facts_is_missed_only_where_prompts_have_facts_and_where_it_could_be_asked() -> None:
    facts, plain = audit_report({"hot": factual_with_substance("hot")}).report, audit_report().report
    samples, elicit = "(--samples)", "(--elicit)"
    assert [any(flag in said for said in missing(facts)) for flag in (samples, elicit)] == [True, True]
    assert [any(flag in said for said in missing(plain)) for flag in (samples, elicit)] == [False, False]
    served = changed(facts, {"run": {**facts.run.document(), "settings": {"model": "http://host:8000/v1", "prompts": ["hot"]}}})
    assert [any(flag in said for said in missing(served)) for flag in (samples, elicit)] == [True, False]
    assert not [said for said in missing(run_report().report) if elicit in said]  # run has no --elicit


def test_a_citation_names_the_model_and_breaks_out_of_no_brace() -> None:
    found = citation(changed(run_report().report, {"run": run_record(model="a}{b\\c")}))
    assert "Refusals of abc" in found.figures and found.figures.count("{") == found.figures.count("}")
    assert "2406.11717" in found.method


HOME = "/home/alice/clients/x/model"


def local(given: str, **fields: Any) -> RunRecord:
    return run_of(filled({**run_record(model=given), "model_path": HOME}, fields))


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (local(HOME), "model"),
        (local("clients/x/model"), "model"),
        (local("."), "model"),
        (local(HOME, model_path=None), "model"),
        (local(HOME, hub_id="org/x"), "org/x"),
        (local("qwen3-8b", hub_id="Qwen/Qwen3-8B"), "Qwen/Qwen3-8B"),
        (local("smollm2-refuser", model_path="/root/.cache/smollm2-refuser-cac94708"), "smollm2-refuser"),
        (local("org/x", model_path=None), "org/x"),
        (local("http://host:1/v1", model_path=None, resolved={"engines": {"base": {"kind": "server", "model": HOME}}}), "model"),
        (local("http://host:1/v1", model_path=None), "a model on a server"),
        (
            local("", settings={"base": HOME, "derived": "/srv/bob/edit"}, derived={"model_path": "/srv/bob/edit"}),
            "edit compared with model",
        ),
    ],
)
def test_a_model_is_called_by_its_id_or_its_folders_own_name(run: RunRecord, name: str) -> None:
    assert model_name(run) == name
    cited = citation(run_report().report.model_copy(update={"run": run})).figures
    assert f"Refusals of {name}:" in cited and "alice" not in cited and "bob" not in cited


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("runs/mine/checkpoint", "mine"),
        ("alice/checkpoint", "checkpoint"),
        ("alice/model", "model"),
        ("c/models--org--name/snapshots/" + "0a" * 20, "org/name"),
    ],
)
def test_the_folder_above_names_a_runs_checkpoint_and_a_snapshot_and_nothing_else(folder: str, name: str, tmp_path: Path) -> None:
    place = tmp_path / folder
    place.mkdir(parents=True)
    if "runs" in folder:
        (place.parent / "run.json").write_text("{}")
    assert folder_name(place) == name


def test_a_map_of_one_cell_is_left_out() -> None:
    one = [(replace(t, topic="fire", lang="en"), v) for t, v in judged("hot", [NO] * 4)]
    assert maps_of(audit_report({"hot": one}).report) == []
    made = audit_report({"hot": [*one, *((replace(t, id=f"z{t.id}", lang="zh"), v) for t, v in one)]})
    assert len(maps_of(made.report)) == 1


def test_a_control_with_topics_of_other_names_has_a_map_of_its_own() -> None:
    base = {"hot": judged("hot", [NO] * 8), "cold": judged("cold", [YES] * 8)}
    assert [found.control for found in maps_of(audit_report(base).report)] == ["cold"]
    renamed = [(replace(t, topic=f"other {t.topic}"), v) for t, v in base["cold"]]
    maps = maps_of(audit_report({**base, "cold": renamed}).report)
    assert [(found.name, found.control, found.sets) for found in maps] == [("hot", None, ["hot"]), ("cold", None, ["cold"])]
    assert all(cell is not None for found in maps for row in found.rows for cell in row.cells)


def test_a_control_with_categories_alone_has_a_map_of_its_own() -> None:
    other = [(replace(t, topic=None, category=("fire", "water")[i % 2]), v) for i, (t, v) in enumerate(judged("cold", [YES] * 8))]
    maps = maps_of(audit_report({"hot": judged("hot", [NO] * 8), "cold": other}).report)
    assert [found.sets for found in maps] == [["hot"], ["cold"]]
    assert all(cell is not None for found in maps for row in found.rows for cell in row.cells)


def test_rates_of_cut_replies_stand_beside_the_whole_ones() -> None:
    made = [(replace(t, new_tokens=40), v) for t, v in judged("hot", [NO] * 3 + [YES])]
    short = [(replace(t, new_tokens=20), v) for t, v in judged("plain", [YES] * 4)]
    found = cuts(audit_report({"hot": made, "plain": short}).report)
    assert found is not None and found.lengths == [16, 32]
    assert [(row.set, row.whole, row.rates[1]) for row in found.rows] == [("hot", 0.75, 0.75), ("plain", 0.0, None)]
    assert cuts(audit_report().report) is None and cuts(weights_report().report) is None


def test_thoughts_are_crossed_with_answers_of_both_models() -> None:
    crossed = Crossed(counts={}, shut=Answers(withheld=9, not_withheld=1), open=Answers(withheld=2, not_withheld=0))
    both, one = ThoughtByAnswer(base=crossed, edited=crossed), ThoughtByAnswer(base=crossed, edited=None)
    rows = thoughts(run_report().report.model_copy(update={"thought_by_answer": {"hot": both, "cold": one}}))
    assert [(row.set, row.model) for row in rows] == [("hot", "base")] * 2 + [("hot", "edited")] * 2 + [("cold", "base")] * 2
    assert rows[0] == ThoughtRow("hot", "base", "empty or refusing", 9, 1)
    assert thoughts(audit_report().report) == []


def contrast(one: str, other: str) -> float:
    """The contrast of two colours as WCAG 2 defines it."""

    def light(colour: str) -> float:
        parts = [each / 255 for each in bytes.fromhex(colour[1:])]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dim, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.look not in ("hatched", "dashed")], ids=lambda kind: kind.name)
def test_a_figure_in_a_bar_has_enough_contrast(kind: Kind) -> None:
    """Hatched and dashed parts have the page's text on the page's ground."""
    style = (Path(render.__file__).parents[1] / "templates" / "style.css").read_text(encoding="utf-8")
    inks = re.findall(rf"--{'on-dark' if kind.light_text else 'on-light'}: (#\w+);", style)[:2]  # light and dark
    assert all(contrast(colour, ink) >= 4.5 for colour, ink in zip(kind.colours, inks, strict=True))


def test_truncated_on_a_dark_page_keeps_apart_from_what_stands_beside_it_in_a_bar() -> None:
    dark = {kind.name: bytes.fromhex(kind.colours[1][1:]) for kind in KINDS}
    for name in ("unknown", "answered", "hedged", "degenerate"):
        assert sum(abs(a - b) for a, b in zip(dark["truncated"], dark[name], strict=True)) > 60, name


def test_grey_figures_in_tables_do_not_run_into_the_figure_before_them() -> None:
    auc = {"auc": 0.91, "auc_ci95": [0.71, 1.0], "n": 4, "clusters": 4}
    known = {"contexts": {"chat": auc}, "withheld": {**auc, "reading": "knows"}, "answered": auc}
    unmatched = {"in_question": 0, "no_sibling": 0, "other_kind": 0}
    sets = {"hot": {"base": known, "control": False, "by_lang": {}, "topics": {}}}
    found = {"context": "chat", "controls": [], "facts": 9, "pairs": 90, "unmatched": unmatched, "sets": sets}
    for made in (audit_report(), run_report(), weights_report()):
        page = report_page(changed(made.report, {"elicitation": found}), made.base, made.edited, made.auc)
        assert "0.91 (0.71–1.00) <small>n = 4</small>" in page and not re.search(r"[^\s>]<small|</\w+><small", page)


def test_the_search_says_what_it_searches() -> None:
    made = run_report()
    excerpts, whole = (report_page(made.report, made.base, made.edited, made.auc, shows) for shows in ("excerpt", "full"))
    label = "Search these excerpts (the rest of the replies is not searched)<input"
    assert label in excerpts and label not in whole and "Search<input" in whole
