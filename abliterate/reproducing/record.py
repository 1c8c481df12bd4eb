"""The record of a run that is to be run again: its settings, what it ran on, and its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from abliterate import __version__
from abliterate.config import AuditConfig, CompareConfig, Config, ReproduceConfig, RunConfig
from abliterate.errors import InputError
from abliterate.report.document import SCHEMA as REPORT
from abliterate.runfolder import SCHEMA as RUN
from abliterate.runfolder import versions

Kind = Literal["run", "audit", "compare"]
Settings = RunConfig | AuditConfig | CompareConfig
_CONFIGS: dict[Kind, type[Config]] = {"run": RunConfig, "audit": AuditConfig, "compare": CompareConfig}


@dataclass(frozen=True)
class Recorded:
    """A finished run: ``run`` is what run.json says, ``report`` what report.json does; ``path`` is where they were read."""

    path: Path
    run: Mapping[str, Any]
    report: Mapping[str, Any]

    @property
    def kind(self) -> Kind:
        """Which command it was, by settings that only that one has."""
        settings = self.run["settings"]
        return "compare" if "derived" in settings else "run" if "target" in settings else "audit"


def read_record(path: Path) -> Recorded:
    """Read a run's folder, its run.json with the report.json beside it, or a report.json alone, which holds the run's record.

    Raises InputError where it is none of these, the run was not finished, or another judge than the rules judged its report.
    """
    file = path / "run.json" if path.is_dir() else path
    found = _json(file)
    if found.get("schema") == RUN:
        beside = file.with_name("report.json")
        if not beside.is_file():
            raise InputError(f"{file}: there is no report.json beside it, so there is nothing to compare with; the run was not finished")
        run, report = found, _json(beside)
    else:
        run, report = found.get("run") or {}, found
    parts_are_there = isinstance(run.get("settings"), dict) and isinstance(run.get("prompts"), dict)
    if report.get("schema") != REPORT or run.get("schema") != RUN or not parts_are_there:
        raise InputError(f"{file}: neither a run's run.json nor its report.json")
    if report.get("judge"):
        raise InputError(f"{file}: its report is by {report['judge']['name']}; write it again by the rules first (abliterate report)")
    return Recorded(file, run, report)


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a run's folder, its run.json or its report.json")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{file}: neither a run's run.json nor its report.json")
    return found


def settings_of(recorded: Recorded, config: ReproduceConfig) -> Settings:
    """The settings of the run, with its models where they lie now, and those from the Hub at the commit that it had.

    Raises InputError where this version knows no such setting, or a place is given for a model that the run hasn't.
    """
    settings = dict(recorded.run["settings"])
    told = {name: place for name, place in config.model_dump().items() if place is not None}
    for name, place in told.items():
        if settings.get(name) is None:
            raise InputError(f"--{name}: {recorded.path} is of a {recorded.kind}, which has no such model")
        settings[name] = place
    for name, revision, record in _models(recorded):
        if name in told or settings.get(name) is None:
            continue
        if not record.get("hub_id"):
            settings[name] = _where(str(settings[name]), record.get("model_path"))
        elif revision in settings and settings[revision] is None:
            settings[revision] = record.get("revision")
    try:
        return _CONFIGS[recorded.kind](**settings)  # type: ignore[return-value]
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{recorded.path}: the setting {'.'.join(map(str, first['loc']))!r} won't do here ({first['msg']}); "
            f"it was run by version {recorded.run.get('abliterate')}, this is {__version__}"
        ) from None


def _models(recorded: Recorded) -> list[tuple[str, str, Mapping[str, Any]]]:
    """The settings of each model (its place, its revision), and what was recorded of it."""
    run = recorded.run
    first = ("base", "base_revision") if recorded.kind == "compare" else ("model", "revision")
    return [
        (*first, run),
        ("derived", "derived_revision", run.get("derived") or {}),
        ("reference", "reference_revision", run.get("reference") or {}),
    ]


def _where(given: str, path: str | None) -> str:
    """A folder as it was given, or, where that says nothing from here (a path from elsewhere), where it was found."""
    is_path = "/" in given and "://" not in given
    return path if path is not None and is_path and not Path(given).expanduser().exists() and Path(path).is_dir() else given


def differences(recorded: Recorded, now: Mapping[str, Any]) -> dict[str, Any]:
    """What is not as it was the first time, by kind: settings, versions, what was resolved, files of the models.

    ``now``: the run.json of the second time.
    """
    before = recorded.run
    versions_before = {"abliterate": before.get("abliterate"), **(before.get("versions") or {})}
    return {
        "settings": _changed(before["settings"], now["settings"]),
        "versions": _changed(versions_before, {"abliterate": __version__, **versions()}),
        "resolved": _changed(before.get("resolved") or {}, now.get("resolved") or {}),
        "model_hashes": _changed(before.get("model_hashes") or {}, now.get("model_hashes") or {}),
    }


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Key by key what differs: [before, now]; null where it wasn't there."""
    keys = [*before, *(key for key in now if key not in before)]
    return {key: [before.get(key), now.get(key)] for key in keys if before.get(key) != now.get(key)}
