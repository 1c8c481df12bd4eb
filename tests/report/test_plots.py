"""Plots: they take their colours from the page and load nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from reports import directions, run_report, selection_of

from abliterate.report.page.figures import of_choice
from abliterate.report.page.plots import Plot, TradePoint, cloud, lines, separation, trade

AXIS = ("block", "cosine")


def drawn(plot: Plot) -> ElementTree.Element:
    return ElementTree.fromstring(str(plot.svg))


def line_plot(series: dict[str, list[float | None]]) -> Plot:
    return lines("some", "Some lines", "said", series, AXIS, (0.0, 1.0), 0.5)


def points(count: int) -> list[TradePoint]:
    return [TradePoint(0.1 * i, 50.0 / (i + 1), front=i % 2 == 0, chosen=i == 2) for i in range(count)]


def curves(root: ElementTree.Element) -> int:
    """Lines thicker than those of the grid."""
    return sum(e.get("stroke-width") == "1.7" for e in root.iter("path"))


PLOTS = {
    "lines": lambda: line_plot({"mean": [0.5, 0.8, 1.0], "<script>": [0.4, None, 0.7]}),
    "separation": lambda: separation("sep", directions()["estimators"]["projected"]["auc"], [-1, -2, -3], (6, -2)),
    "cloud": lambda: cloud("cloud", "Points", "said", {"a": [[0.0, 1.0], [1.0, 0.0]], "b": [[2.0, 2.0]], "c": []}, AXIS),
    "trade": lambda: trade("trade", "Points", "said", points(5), AXIS),
}


@pytest.mark.parametrize("kind", PLOTS)
def test_a_plot_holds_no_script_no_style_and_nothing_from_outside(kind: str) -> None:
    root = drawn(PLOTS[kind]())
    assert root.tag == "svg" and root.get("role") == "img"
    assert not {e.tag for e in root.iter()} & {"script", "style", "image", "foreignObject", "a", "metadata"}
    assert not [e for e in root.iter() if "style" in e.attrib or ("class" in e.attrib and e is not root)]
    references = [value for e in root.iter() for key, value in e.attrib.items() if key.endswith("href")]
    assert all(value.startswith("#") for value in references)


@pytest.mark.parametrize("kind", PLOTS)
def test_every_colour_is_the_pages_own(kind: str) -> None:
    colours = {e.get(key) for e in drawn(PLOTS[kind]()).iter() for key in ("fill", "stroke") if e.get(key)}
    assert colours - {"none"} and all(re.fullmatch(r"var\(--\w+\)", str(colour)) for colour in colours - {"none"})


@pytest.mark.parametrize("kind", PLOTS)
def test_a_plot_is_named_and_described(kind: str) -> None:
    root = drawn(PLOTS[kind]())
    texts = {e.get("id"): e.text for e in root if e.tag in ("title", "desc")}
    assert [texts[key] for key in str(root.get("aria-labelledby")).split()] == [PLOTS[kind]().title, texts[f"{root[1].get('id')}"]]
    assert all(texts.values())


@pytest.mark.parametrize("kind", PLOTS)
def test_the_same_figures_give_the_same_bytes(kind: str) -> None:
    assert PLOTS[kind]() == PLOTS[kind]()


def test_every_series_is_drawn_and_stands_in_the_key() -> None:
    for count in (1, 4, 9):
        plot = line_plot({f"estimator {i}": [0.1 * i, 0.5, 0.6] for i in range(count)})
        assert curves(drawn(plot)) == len(plot.key) == count


def test_the_first_eight_lines_all_look_different() -> None:
    plot = line_plot({f"estimator {i}": [0.1 * i, 0.5] for i in range(8)})
    looks = [(e.get("stroke"), e.get("stroke-dasharray")) for e in drawn(plot).iter("path") if e.get("stroke-width") == "1.7"]
    assert len(set(looks)) == 8 == len({kind for kind, _ in plot.key})


def test_a_value_that_is_missing_breaks_the_line() -> None:
    whole, broken = (drawn(line_plot({"a": values})) for values in ([0.1, 0.9, 0.1, 0.9, 0.1], [0.1, 0.9, None, 0.9, 0.1]))
    path = [next(e.get("d") or "" for e in root.iter("path") if e.get("stroke-width") == "1.7") for root in (whole, broken)]
    assert [d.count("M") for d in path] == [1, 2]


def test_no_name_of_a_user_is_drawn() -> None:
    plot = line_plot({"$\\frac{1}{0}$ <b>": [0.5, 1.0], "_hidden": [0.4, 0.2]})
    texts = {(e.text or "") for e in drawn(plot).iter("text")}
    assert not [text for text in texts if "frac" in text or "hidden" in text] and len(plot.key) == 2


def test_the_best_separation_is_described_and_only_the_last_positions_are_drawn() -> None:
    plot = separation("sep", [[0.5, 0.75]] * 20, list(range(-1, -21, -1)), None)
    assert "0.75, at activation index 1" in str(plot.svg)
    assert "Only the last 12 of 20 positions" in plot.caption and plot.key == ()


def test_worse_than_chance_has_no_colour_and_perfect_has_all() -> None:
    root = drawn(separation("sep", [[0.2, 0.5, 0.75, 1.0]], [-1], None))
    cells = [e for e in root.iter("path") if e.get("fill") == "var(--accent)"]
    assert [cell.get("fill-opacity", cell.get("opacity", "1")) for cell in cells] == ["0.5", "1"]


def test_large_prompt_sets_are_thinned() -> None:
    root = drawn(cloud("cloud", "Points", "said", {"a": [[0.1 * i, 0.2 * i] for i in range(10_000)]}, AXIS))
    assert 100 < len(list(root.iter("use"))) < 300


def test_a_single_point_and_a_front_of_one_are_drawn() -> None:
    assert drawn(trade("trade", "Points", "said", points(1), AXIS)).tag == "svg"
    assert ("dot-front", "Pareto front") not in trade("trade", "P", "s", [TradePoint(1.0, 2.0, front=False, chosen=True)], AXIS).key


def shapes(plot: Plot) -> int:
    """The number of marks of different shape or fill."""
    return len({(use.get("href")) for use in drawn(plot).iter("use")})


def test_candidates_and_what_was_tuned_from_them_have_marks_of_their_own() -> None:
    mixed = [replace(point, improved=i > 1) for i, point in enumerate(points(6))]
    plot = trade("trade", "Points", "said", mixed, AXIS, "Pareto front of three", "tuned")
    names = dict(plot.key)
    assert names["square-other"] == "candidate as estimated" and names["dot-other"] == "tuned"
    assert names["dot-front"] == "filled: Pareto front of three"
    assert shapes(plot) > shapes(trade("trade", "Points", "said", points(6), AXIS))


def test_the_front_tells_trials_and_steps_from_candidates() -> None:
    point = {"target_left": 0.5, "kl": 0.1, "on_front": True, "chosen": False}
    names = {
        "gradient": [("a, strength 1", 0), ("tuned, step 6", 6)],
        "search": [("a, strength 1", 0), ("trial 0", 0)],
        "off": [("a, strength 1", 0), ("a, strength 0.85", 0)],
    }
    for kind, of in names.items():
        tuning = {"kind": kind, "front": [{**point, "name": name, "step": step} for name, step in of]}
        (plot,) = of_choice(run_report().report.model_copy(update={"selection": selection_of({"tuning": tuning})}))
        assert ("square-other" in dict(plot.key)) == (kind != "off")
