"""report.html: one self-contained page; every text from a model or a user is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from abliterate.evaluation.summary import Judged
from abliterate.report import sentences
from abliterate.report.document import pairs_of
from abliterate.report.plots import layer_plot

_MAX_ROWS = 60  # transcripts shown a set; all of them are in the transcripts folder


def environment() -> Environment:
    """Templates with autoescape on for everything."""
    made = Environment(
        loader=PackageLoader("abliterate.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = percent
    made.filters["interval"] = interval
    made.filters["corrected"] = corrected
    made.filters["nats"] = lambda value: "not measured" if value is None else f"{value:.3f}"
    made.filters["duration"] = lambda s: f"{s / 60:.1f} min" if s >= 90 else f"{s:.1f} s"
    return made


def percent(rate: Mapping[str, Any] | None) -> str:
    """A rate as a person reads it."""
    if rate is None or rate["rate"] is None:
        return "–"
    return f"{100 * rate['rate']:.1f} %"


def interval(rate: Mapping[str, Any] | None) -> str:
    """The rate's counts and 95 % interval."""
    if rate is None or rate["rate"] is None:
        return ""
    low, high = rate["ci95"]
    return f"{rate['k']}/{rate['n']}, 95 % {100 * low:.1f}–{100 * high:.1f}"


def corrected(rate: Mapping[str, Any] | None) -> str:
    """The rate put right for what its detector is known to miss, where it has one."""
    found = None if rate is None else rate.get("corrected")
    if found is None:
        return ""
    low, high = found["ci95"]
    return f"corrected {100 * found['rate']:.1f} %, 95 % {100 * low:.1f}–{100 * high:.1f}"


def model_name(run: Mapping[str, Any]) -> str:
    """What the model was called by the user, or by the server where it is nowhere else."""
    if "derived" in run["settings"]:
        return f"{run['settings']['derived']} against {run['settings']['base']}"
    served = run.get("resolved", {}).get("engines", {}).get("base", {}).get("model")
    return str(served if served and run.get("model_path") is None else run["settings"]["model"])


def two_models(report: Mapping[str, Any]) -> bool:
    """Whether the report has a before and an after."""
    return report["edit"] is not None or any(entry["edited"] is not None for entry in report["sets"].values())


def headline(report: Mapping[str, Any]) -> str:
    """What was done to which model, and what came of it, in a sentence or two."""
    name = model_name(report["run"])
    sets = report["sets"]
    if "derived" in report["run"]["settings"]:
        return f"{name}: what changed between the two models."
    if report["edit"] is None:
        return f"What {name} withholds, on {sum(s['n'] for s in sets.values())} prompts it was asked."
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
) -> str:
    """The page. ``auc`` holds the separation on val by activation index, an estimator a line."""
    rows = {name: (pairs[:_MAX_ROWS], len(pairs)) for name, pairs in pairs_of(base, edited).items()}
    template = environment().get_template("report.html.jinja2")
    return template.render(
        report=report,
        name=model_name(report["run"]),
        both=two_models(report),
        headline=headline(report),
        sentences=sentences.all_of(report),
        rows=rows,
        plot=layer_plot(auc) if auc else None,
    )
