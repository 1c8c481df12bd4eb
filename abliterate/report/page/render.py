"""report.html: one self-contained page. Every text from a model or a user is escaped, and only the page's own script runs."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from abliterate.choice.records import FrontPoint
from abliterate.config import Transcripts
from abliterate.files import Json
from abliterate.measures.parts.sets import Row
from abliterate.measures.summary import Judged
from abliterate.outcomes.records import OUTCOMES
from abliterate.outcomes.worth.records import short_of
from abliterate.report import choice, provenance, rates
from abliterate.report.bars.bars import BarGroup, kinds_there
from abliterate.report.bars.kinds import Kind, counts
from abliterate.report.first import FirstScreen, first_screen
from abliterate.report.numbers import auc_of, bounds, corrected, duration, interval, outcome, percent, withheld
from abliterate.report.page import figures, heatmap, rest, tables, topics
from abliterate.report.page.browser import browser
from abliterate.report.page.colours import outcome_css, patterns
from abliterate.report.page.escaping import language, shown
from abliterate.report.page.knowledge import Knowledge, knowledge
from abliterate.report.page.plots import Plot
from abliterate.report.tree.report import Report
from abliterate.report.without_paths import judge_without_paths, without_paths

LIMIT = 1_950_000  # bytes of a page without whole transcripts
_SAID_FIRST = 4  # sentences on the first screen; the others are folded away


def environment() -> Environment:
    """The Jinja environment: everything is escaped, and control characters are replaced."""
    made = Environment(
        loader=PackageLoader("abliterate.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    made.filters["percent"] = percent
    made.filters["interval"] = interval
    made.filters["bounds"] = bounds
    made.filters["corrected"] = corrected
    made.filters["of_kind"] = lambda found, kind: counts(found)[kind]
    made.filters["language"] = language
    made.filters["outcome"] = outcome
    made.filters["meaning"] = short_of
    made.filters["named"] = rest.named
    made.filters["in_bar"] = rest.in_bar
    made.filters["auc"] = auc_of
    made.filters["nats"] = lambda value: "not measured" if value is None else f"{value:.3f}"
    made.filters["duration"] = duration
    made.filters["judge"] = judge_without_paths
    made.globals["withheld"] = withheld()
    made.globals["patterns"] = patterns()
    made.globals["policy"] = content_policy()
    made.globals["style"] = Markup(_style())
    made.globals["script"] = Markup(_static("browser.js"))
    return made


@cache
def _static(name: str) -> str:
    loader = PackageLoader("abliterate.report")
    return loader.get_source(Environment(autoescape=True), name)[0].strip()


def _style() -> str:
    return f"{_static('style.css')}\n{outcome_css()}"


def content_policy() -> str:
    """The Content-Security-Policy: only the page's own style and script, by their hashes, and nothing from outside."""
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (_style(), _static("browser.js")))
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def report_page(
    report: Report,
    base: Mapping[str, Judged],
    edited: Mapping[str, Judged] | None,
    auc: Mapping[str, Sequence[float]] | None,
    transcripts: Transcripts = "excerpt",
) -> str:
    """The page, smaller than ``LIMIT`` bytes unless whole transcripts are asked for. ``auc``: the separation on val by activation index,
    one line per estimator; ``transcripts``: how much of each reply is shown."""
    shows = {**vars(_content(report, auc, topics.worth_of_topics(base, edited))), "transcripts": transcripts}
    template = environment().get_template("report.html.jinja2")
    bare = template.render(**shows, browser=None)
    found = browser(base, edited, transcripts, LIMIT - len(bare.encode(errors="replace")))
    return bare if found is None else template.render(**shows, browser=found)


@dataclass(frozen=True)
class _Content:
    """Everything that the page shows except transcripts; ``first``: the first screen, whose ``said`` is split into two parts."""

    report: Report
    first: FirstScreen
    both: bool
    after: str
    said: Sequence[str]
    said_too: Sequence[str]
    groups: Sequence[BarGroup]
    kinds: Sequence[Kind]
    controls_end: float
    outcomes_there: Sequence[str]
    marks: Sequence[Kind]
    rows_by_topic: Mapping[str, Sequence[Row]]
    maps: Sequence[heatmap.HeatMap]
    layer_plots: Sequence[Plot]
    choice_plots: Sequence[Plot]
    way: Sequence[str]
    mark: str
    replied: Sequence[FrontPoint]
    cuts: tables.Cuts | None
    thoughts: Sequence[tables.ThoughtRow]
    knowledge: Knowledge | None
    command: str
    record: Json
    stages: Sequence[provenance.StageCost]
    cite: provenance.Citation


def _content(report: Report, auc: Mapping[str, Sequence[float]] | None, worth: topics.WorthOfTopics) -> _Content:
    first = first_screen(report)
    public = without_paths(report.run)
    return _Content(
        report=report,
        first=first,
        both=first.both,
        after=first.after,
        said=first.said[:_SAID_FIRST],
        said_too=first.said[_SAID_FIRST:],
        groups=first.groups,
        kinds=kinds_there(first.groups),
        controls_end=rates.nats_end(report.controls) if report.controls else 0.0,
        outcomes_there=rates.outcomes_there(report),
        marks=[kind for kind in kinds_there(first.groups) if kind.name not in OUTCOMES],
        rows_by_topic={name: topics.most_withheld_first(rows) for name, rows in report.tables.items()},
        maps=heatmap.heat_maps(report, worth),
        layer_plots=figures.of_layers(report, auc),
        choice_plots=figures.of_choice(report),
        way=choice.way(report.selection),
        mark=choice.mark(report.selection),
        replied=choice.replied(report.selection),
        cuts=tables.cuts(report),
        thoughts=tables.thoughts(report),
        knowledge=knowledge(report),
        command=provenance.command(public),
        record=public.document(),
        stages=provenance.stages(report.cost),
        cite=provenance.citation(report),
    )
