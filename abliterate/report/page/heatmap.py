"""Heat maps of what is withheld, by topic and language, each set beside its control; darker cells mean more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from abliterate.measures.parts.rates import Outcomes, Rate
from abliterate.measures.parts.sets import Row, Side
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
    """The cells of one topic, in the order of the columns for each language, and the test's p (Holm); None without one."""

    topic: str
    cells: Sequence[Cell | None]
    p: float | None


@dataclass(frozen=True)
class HeatMap:
    """The map of the set ``name``, beside its ``control`` if there is one.

    ``columns``: (set, model) pairs, which repeat for each language. ``tested``: whether there is a before and an after. ``left_out``: how
    many topics are not shown.
    """

    name: str
    control: str | None
    langs: Sequence[str]
    sets: Sequence[str]
    columns: Sequence[tuple[str, Side]]
    rows: Sequence[TopicRow]
    tested: bool
    significant: bool
    left_out: int


def heat_maps(report: Report) -> list[HeatMap]:
    """One map per set that has topics or categories.

    A control is shown beside its set, without a map of its own, if both have topics of the same name in the same language.
    """
    pairs = [(entry.set, entry.control) for entry in report.against_control or ()]
    controls = {name: control for name, control in pairs if _topics(report, name) & _topics(report, control)}
    maps = [_map(report, name, controls.get(name)) for name in report.sets if name not in controls.values()]
    return [found for found in maps if len(found.rows) * len(found.langs) > 1]  # one cell is the set's own rate


def _topics(report: Report, name: str) -> set[tuple[str, str]]:
    """The (topic, language) pairs of a set's table."""
    return {(row.topic, row.lang) for row in report.tables.get(name, ()) if row.topic}


def _map(report: Report, name: str, control: str | None) -> HeatMap:
    both = report.sets[name].edited is not None
    models: tuple[Side, ...] = ("base", "edited") if both else ("base",)
    cells = _by_language(report.tables.get(name, ())) or _by_category(report, name)
    others = _by_language(report.tables[control]) if control else {}
    langs = sorted({lang for _, lang in cells})
    sets = [name, *([control] if control else [])]
    columns = [(of, side) for of in sets for side in models]
    topics = list(dict.fromkeys(topic for topic, _ in cells))
    tests = {topic: entry.paired.holm_p if entry.paired else None for topic, entry in report.by_topic.get(name, {}).items()}
    rows = [
        TopicRow(
            topic,
            [(others if of == control else cells).get((topic, lang), {}).get(side) for lang in langs for of, side in columns],
            tests.get(topic),
        )
        for topic in topics[:_ROWS]
    ]
    significant = any(p is not None and p < 0.05 for p in tests.values())
    return HeatMap(name, control, langs, sets, columns, rows, both, significant, max(0, len(topics) - _ROWS))


def _by_language(table: Sequence[Row]) -> Cells:
    return {(row.topic or "(no topic)", row.lang): _sides(_of_counts(row.base), _of_counts(row.edited)) for row in table}


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
