"""Several runs side by side on one page: rates on one scale, drift, tests, and the settings that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from abliterate.errors import InputError
from abliterate.files import Interval, check_new, write_text
from abliterate.measures.parts.rates import Measure
from abliterate.report import claims as verdicts
from abliterate.report.claims import Claim
from abliterate.report.page.render import environment
from abliterate.report.provenance import after, command, model_name
from abliterate.report.rates import RateRow, rate_rows, round_up
from abliterate.report.tree.report import Report
from abliterate.report.without_paths import without_paths

_ROLES = ("target", "keep", "baseline", "harmless", "borderline", "audited")


def compare_runs(folders: Sequence[Path], out: Path) -> str:
    """Write the page ``out`` from the report.json of each run's folder. Returns a line that says what was written.

    Raises InputError if a folder holds no report, fewer than two are given, or ``out`` exists.
    """
    if len(folders) < 2:
        raise InputError("--compare needs two runs or more")
    check_new(out)
    reports = dict(zip(_names(folders), [_report(folder) for folder in folders], strict=True))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(runs_page(reports), out)
    return f"{out}: {len(reports)} runs side by side"


def _names(folders: Sequence[Path]) -> list[str]:
    """A name for each run: its folder's name, with as many parent folders as make it unique. Raises InputError for a run given twice."""
    whole = [folder.resolve() for folder in folders]
    if len(set(whole)) < len(whole):
        raise InputError("--compare: a run is given twice")
    most = max(len(folder.parts) for folder in whole)
    named = ([str(Path(*folder.parts[-parts:])) for folder in whole] for parts in range(1, most + 1))
    return next(names for names in named if len(set(names)) == len(names))


def _report(folder: Path) -> Report:
    file = folder / "report.json"
    if not file.is_file():
        raise InputError(f"{folder}: no report.json; give the folder of a finished run, audit or comparison")
    try:
        return Report.read(file)
    except InputError as error:
        why = str(error).removeprefix(f"{file}: ")
        raise InputError(f"{file}: not a report of abliterate ({why}); write it again with: abliterate report {folder}") from None


@dataclass(frozen=True)
class _Run:
    """One run's row: its model, the tests, and the command that repeats it."""

    model: str
    report: Report
    command: str
    verdicts: Sequence[Claim]


def runs_page(reports: Mapping[str, Report]) -> str:
    """The page of several reports; ``reports`` maps the runs' names to them."""
    return (
        environment()
        .get_template("runs.html.jinja2")
        .render(
            runs={name: _Run(model_name(r.run), r, command(without_paths(r.run)), verdicts.all_of(r)) for name, r in reports.items()},
            both=any(r.two_models for r in reports.values()),
            lone=any(r.sets and not r.two_models for r in reports.values()),
            after=" or ".join(dict.fromkeys(after(r) for r in reports.values() if r.two_models)) or "edited",
            sets=_sets(reports),
            drift=_drift(reports),
            unlike=_unlike(reports),
            settings=_settings(reports),
        )
    )


@dataclass(frozen=True)
class _SetRates:
    """One measure of a prompt set in every run that used it: (run, rates) pairs."""

    name: str
    role: str
    measure: Measure
    rows: Sequence[tuple[str, RateRow]]


def _sets(reports: Mapping[str, Report]) -> list[_SetRates]:
    """Each prompt set with its rates in every run that used it, targets first."""
    whole = {run: [row for row in rate_rows(r) if row.lang is None] for run, r in reports.items()}
    found = {(row.name, row.role, row.measure): None for rows in whole.values() for row in rows}
    # Sets in the order in which runs name them, each with its own measure first.
    names = dict.fromkeys((name, role) for name, role, _ in found)
    ordered = sorted(names, key=lambda pair: _ROLES.index(pair[1]) if pair[1] in _ROLES else len(_ROLES))
    return [
        _SetRates(name, role, measure, [(run, row) for run, rows in whole.items() for row in rows if _key(row) == (name, role, measure)])
        for name, role in ordered
        for of, as_, measure in found
        if (of, as_) == (name, role)
    ]


def _key(row: RateRow) -> tuple[str, str, Measure]:
    return row.name, row.role, row.measure


@dataclass(frozen=True)
class _DriftRow:
    run: str
    value: float
    ci95: Interval
    set: str
    n: int


@dataclass(frozen=True)
class _Drifts:
    """The drift of each run, and the round number at which their scale ends."""

    end: float
    rows: Sequence[_DriftRow]


def _drift(reports: Mapping[str, Report]) -> _Drifts | None:
    rows = [
        _DriftRow(run, *mean, r.drift.set, r.drift.n) for run, r in reports.items() if r.drift and (mean := r.drift.mean("kl_first_token"))
    ]
    return _Drifts(round_up(max([0.1, *(row.ci95[1] for row in rows)])), rows) if rows else None


def _unlike(reports: Mapping[str, Report]) -> list[str]:
    """Sets whose prompts differ between the runs, so that their rates can't be compared."""
    known: dict[str, set[tuple[str | None, int]]] = {}
    for r in reports.values():
        for name, entry in r.sets.items():
            used = r.run.prompts.get(name)
            known.setdefault(name, set()).add((used.sha256 if used else None, entry.n))
    return [name for name, versions in known.items() if len(versions) > 1]


def _settings(reports: Mapping[str, Report]) -> list[tuple[str, list[str]]]:
    """Settings that differ between the runs, with each run's value."""
    given = [r.run.settings for r in reports.values()]
    named = [without_paths(r.run).settings for r in reports.values()]
    keys = dict.fromkeys(key for settings in given for key in settings)
    unlike = [key for key in keys if len({_short(settings.get(key)) for settings in given}) > 1]
    return [(key, [_short(settings.get(key)) for settings in named]) for key in unlike]


def _short(value: object) -> str:
    return "–" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)
