"""Several runs side by side on one page: rates on one scale, drift, tests, and the settings that differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from abliterate.errors import InputError
from abliterate.files import check_new, write_text
from abliterate.report import claims as verdicts
from abliterate.report.document import SCHEMA
from abliterate.report.page.render import environment, two_models
from abliterate.report.provenance import after, command, model_name
from abliterate.report.rates import round_up
from abliterate.report.without_paths import without_paths

_ROLES = ("target", "keep", "baseline", "harmless", "borderline", "audited")
_DRIFT = "kl_first_token"


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


def _report(folder: Path) -> dict[str, Any]:
    file = folder / "report.json"
    if not file.is_file():
        raise InputError(f"{folder}: no report.json; give the folder of a finished run, audit or comparison")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        ours = found["schema"] == SCHEMA and isinstance(found["sets"], dict)
    except (ValueError, KeyError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise InputError(f"{file}: not a report of abliterate; write it again with: abliterate report {folder}")
    return dict(found)


def runs_page(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of several reports; ``reports`` maps the runs' names to them."""
    return (
        environment()
        .get_template("runs.html.jinja2")
        .render(
            runs={
                name: {
                    "model": model_name(r["run"]),
                    "report": r,
                    "command": command(without_paths(r["run"])),
                    "verdicts": verdicts.all_of(r),
                }
                for name, r in reports.items()
            },
            both=any(two_models(r) for r in reports.values()),
            lone=any(r["sets"] and not two_models(r) for r in reports.values()),
            after=" or ".join(dict.fromkeys(after(r) for r in reports.values() if two_models(r))) or "edited",
            sets=_sets(reports),
            drift=_drift(reports),
            unlike=_unlike(reports),
            settings=_settings(reports),
        )
    )


def _sets(reports: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each prompt set with its rates in every run that used it, targets first."""
    names = {(name, entry["role"]): None for r in reports.values() for name, entry in r["sets"].items()}
    found = []
    for name, role in sorted(names, key=lambda pair: _ROLES.index(pair[1]) if pair[1] in _ROLES else len(_ROLES)):
        for measure in ("refused" if role == "keep" else "withheld", "degenerate"):
            entries = {run: r["sets"][name] for run, r in reports.items() if r["sets"].get(name, {}).get("role") == role}
            rows = [
                {"run": run, "n": e["base"][measure]["n"], "base": e["base"][measure], "edited": e["edited"] and e["edited"][measure]}
                for run, e in entries.items()
            ]
            found.append({"name": name, "role": role, "measure": measure, "rows": rows})
    return found


def _drift(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    there = {run: r["drift"] for run, r in reports.items() if r["drift"] and r["drift"].get(_DRIFT) is not None}
    if not there:
        return None
    rows = [{"run": run, "value": d[_DRIFT], "ci95": d[f"{_DRIFT}_ci95"], "set": d["set"], "n": d["n"]} for run, d in there.items()]
    return {"end": round_up(max([0.1, *(row["ci95"][1] for row in rows)])), "rows": rows}


def _unlike(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sets whose prompts differ between the runs, so that their rates can't be compared."""
    known: dict[str, set[tuple[Any, Any]]] = {}
    for r in reports.values():
        for name, entry in r["sets"].items():
            known.setdefault(name, set()).add((r["run"].get("prompts", {}).get(name, {}).get("sha256"), entry["n"]))
    return [name for name, versions in known.items() if len(versions) > 1]


def _settings(reports: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Settings that differ between the runs, with each run's value."""
    given = [r["run"]["settings"] for r in reports.values()]
    named = [without_paths(r["run"])["settings"] for r in reports.values()]
    keys = dict.fromkeys(key for settings in given for key in settings)
    unlike = [key for key in keys if len({_short(settings.get(key)) for settings in given}) > 1]
    return [(key, [_short(settings.get(key)) for settings in named]) for key in unlike]


def _short(value: Any) -> str:
    return "–" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)
