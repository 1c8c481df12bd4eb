"""report.html: one self-contained page. Every text from a model or a user is escaped, and only the page's own script runs."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from abliterate.config import Transcripts
from abliterate.measures.summary import Judged
from abliterate.report import choice, provenance, rates, sentences
from abliterate.report import claims as verdicts
from abliterate.report.numbers import corrected, duration, interval, outcome, percent
from abliterate.report.page import figures, heatmap, tables
from abliterate.report.page.browser import Browser, browser
from abliterate.report.page.colours import outcome_css
from abliterate.report.page.escaping import language, shown
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
    made.filters["corrected"] = corrected
    made.filters["language"] = language
    made.filters["outcome"] = outcome
    made.filters["nats"] = lambda value: "not measured" if value is None else f"{value:.3f}"
    made.filters["duration"] = duration
    made.filters["judge"] = judge_without_paths
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


def two_models(report: Mapping[str, Any]) -> bool:
    """Whether the report has a before and an after."""
    return report["edit"] is not None or any(entry["edited"] is not None for entry in report["sets"].values())


def headline(report: Mapping[str, Any]) -> str:
    """What was done to which model, with the rates before and after, in a sentence."""
    name = provenance.model_name(report["run"])
    sets = report["sets"]
    if "derived" in report["run"]["settings"]:
        return f"{name}: what changed between the two models."
    if report["edit"] is None:
        return f"What {name} withholds on {sum(s['n'] for s in sets.values())} prompts."
    parts = []
    for label, entry in sets.items():
        if entry["role"] == "target":
            parts.append(f"{label} withheld {percent(entry['base']['withheld'])} → {percent(entry['edited']['withheld'])}")
        elif entry["role"] == "keep":
            parts.append(f"{label} refused {percent(entry['base']['refused'])} → {percent(entry['edited']['refused'])}")
    return f"Directional ablation of {name}: " + "; ".join(parts) + "."


def report_page(
    report: Mapping[str, Any],
    base: Mapping[str, Judged],
    edited: Mapping[str, Judged] | None,
    auc: Mapping[str, Any] | None,
    transcripts: Transcripts = "excerpt",
) -> str:
    """The page, smaller than ``LIMIT`` bytes unless whole transcripts are asked for. ``auc``: the separation on val by activation index,
    one line per estimator; ``transcripts``: how much of each reply is shown."""
    shows = _content(report, auc)
    template = environment().get_template("report.html.jinja2")

    def rendered(found: Browser | None) -> str:
        return template.render(**shows, browser=found, transcripts=transcripts)

    bare = rendered(None)
    found = browser(base, edited, transcripts, LIMIT - len(bare.encode(errors="replace")))
    return bare if found is None else rendered(found)


def _content(report: Mapping[str, Any], auc: Mapping[str, Any] | None) -> dict[str, Any]:
    """Everything that the page shows except transcripts."""
    tests = verdicts.all_of(report)
    listed = {found.sentence() for found in tests}  # the page lists the tests separately
    said = [sentence for sentence in sentences.all_of(report) if sentence not in listed]
    return {
        "report": report,
        "name": provenance.model_name(report["run"]),
        "both": two_models(report),
        "headline": headline(report),
        "after": provenance.after(report),
        "verdicts": tests,
        "failed": list(sentences.kept(report, False)),
        "said": said[:_SAID_FIRST],
        "said_too": said[_SAID_FIRST:],
        "missing": provenance.missing(report),
        "groups": rates.first_screen(report),
        "drift": rates.drift_rows(report["drift"], provenance.after(report)),
        "controls": rates.controls(report),
        "bars": rates.bars(report),
        "outcomes_there": rates.outcomes_there(report),
        "maps": heatmap.heat_maps(report),
        "layer_plots": figures.of_layers(report, auc),
        "choice_plots": figures.of_choice(report),
        "picked": choice.picked(report["selection"]),
        "way": choice.way(report["selection"]),
        "mark": choice.mark(report["selection"]),
        "replied": choice.replied(report["selection"]),
        "cuts": tables.cuts(report),
        "thoughts": tables.thoughts(report),
        "command": provenance.command(without_paths(report["run"])),
        "record": without_paths(report["run"]),
        "kind": provenance.kind(report["run"]),
        "cost": provenance.cost(report.get("cost")),
        "cite": provenance.citation(report),
    }
