"""Heat maps of what is withheld, by topic and language, each set beside its control; darker cells mean more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from abliterate.measures.parts.rates import Outcomes, Rate
from abliterate.measures.parts.sets import Row, Side
from abliterate.outcomes.worth.records import Worth
from abliterate.report.bars.kinds import WORTHS_READ
from abliterate.report.page.topics import NO_TOPIC, WorthOfTopics, in_order
from abliterate.report.tree.report import Report

_LEVELS = 10
_ROWS = 200  # topics shown per set; report.json has all


@dataclass(frozen=True)
class Cell:
    """``k`` of ``n`` prompts are withheld; ``level``: how dark the cell is."""

    k: int
    n: int
    level: int


Cells = Mapping[tuple[str, str], Mapping[Side, Cell | None]]  # by topic and language, of each model


@dataclass(frozen=True)
class TopicRow:
    """The cells of one topic, in the order of the columns for each language, a cell for each worth of its answers, and the test's p (Holm);
    None without one."""

    topic: str
    cells: Sequence[Cell | None]
    worth: Sequence[str]
    p: float | None


@dataclass(frozen=True)
class HeatMap:
    """The map of the set ``name``, beside its ``control`` if there is one.

    ``columns``: (set, model) pairs, which repeat for each language. ``tested``: whether there is a before and an after. ``left_out``: how
    many topics are not shown. ``worths``: those of its answers that have a column; empty without facts.
    """

    name: str
    control: str | None
    langs: Sequence[str]
    sets: Sequence[str]
    columns: Sequence[tuple[str, Side]]
    worths: Sequence[Worth]
    rows: Sequence[TopicRow]
    tested: bool
    significant: bool
    left_out: int


def heat_maps(report: Report, worth: WorthOfTopics) -> list[HeatMap]:
    """One map per set that has topics or categories; topics of which base withholds most come first.

    A control is shown beside its set, without a map of its own, if both have topics of the same name in the same language.
    """
    pairs = [(entry.set, entry.control) for entry in report.against_control or ()]
    controls = {name: control for name, control in pairs if _topics(report, name) & _topics(report, control)}
    maps = [_map(report, name, controls.get(name), worth.get(name)) for name in report.sets if name not in controls.values()]
    return [found for found in maps if len(found.rows) * len(found.langs) > 1]  # one cell is the set's own rate


def _topics(report: Report, name: str) -> set[tuple[str, str]]:
    """The (topic, language) pairs of a set's table."""
    return {(row.topic, row.lang) for row in report.tables.get(name, ()) if row.topic}


def _map(report: Report, name: str, control: str | None, worth: Mapping[str, Sequence[str]] | None) -> HeatMap:
    both = report.sets[name].edited is not None
    models: tuple[Side, ...] = ("base", "edited") if both else ("base",)
    cells = _by_language(report.tables.get(name, ())) or _by_category(report, name)
    others = _by_language(report.tables[control]) if control else {}
    langs = sorted({lang for _, lang in cells})
    sets = [name, *([control] if control else [])]
    columns = [(of, side) for of in sets for side in models]
    topics = in_order(_withheld(cells))
    nothing = [""] * len(WORTHS_READ) if worth else []
    tests = {topic: entry.paired.holm_p if entry.paired else None for topic, entry in report.by_topic.get(name, {}).items()}
    rows = [
        TopicRow(
            topic,
            [(others if of == control else cells).get((topic, lang), {}).get(side) for lang in langs for of, side in columns],
            worth.get(topic, nothing) if worth else nothing,
            tests.get(topic),
        )
        for topic in topics[:_ROWS]
    ]
    significant = any(p is not None and p < 0.05 for p in tests.values())
    return HeatMap(name, control, langs, sets, columns, WORTHS_READ if worth else (), rows, both, significant, max(0, len(topics) - _ROWS))


def _withheld(cells: Cells) -> dict[str, tuple[int, int]]:
    """Withheld and judged replies of base by topic, in all languages."""
    found: dict[str, tuple[int, int]] = {}
    for (topic, _), sides in cells.items():
        k, n = found.get(topic, (0, 0))
        cell = sides["base"]
        found[topic] = (k + (cell.k if cell else 0), n + (cell.n if cell else 0))
    return found


def _by_language(table: Sequence[Row]) -> Cells:
    return {(row.topic or NO_TOPIC, row.lang): _sides(_of_counts(row.base), _of_counts(row.edited)) for row in table}


def _by_category(report: Report, name: str) -> Cells:
    """Cells of a set whose prompts have only categories, all languages together."""
    lang = report.sets[name].lang
    return {(topic, lang): _sides(_of_rate(entry.base), _of_rate(entry.edited)) for topic, entry in report.by_topic.get(name, {}).items()}


def _sides(base: Cell | None, edited: Cell | None) -> dict[Side, Cell | None]:
    return {"base": base, "edited": edited}


def _of_counts(outcomes: Outcomes | None) -> Cell | None:
    return None if outcomes is None else _cell(outcomes.withheld, outcomes.judged)


def _of_rate(rate: Rate | None) -> Cell | None:
    return None if rate is None else _cell(rate.k, rate.n)


def _cell(k: int, n: int) -> Cell | None:
    """None if there are no judged replies."""
    return Cell(k, n, round(_LEVELS * k / n)) if n else None
