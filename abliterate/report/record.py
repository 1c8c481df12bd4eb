"""The record of a run that is to be run again: its settings, what it ran on, and its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from abliterate import __version__
from abliterate.config import AuditConfig, CompareConfig, Config, ReproduceConfig, RunConfig
from abliterate.config.messages import flag_of
from abliterate.config.recorded import why_not_taken
from abliterate.errors import InputError, first_line
from abliterate.report.document import SCHEMA as REPORT
from abliterate.report.likeness import figures
from abliterate.runs.folder import SCHEMA as RUN
from abliterate.runs.folder import versions

Kind = Literal["run", "audit", "compare"]
Settings = RunConfig | AuditConfig | CompareConfig
_PLACES = ("model", "base", "derived", "reference")
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
    if report.get("schema") != REPORT or not isinstance(run, dict) or run.get("schema") != RUN or not _is_whole(run):
        raise InputError(f"{file}: neither a run's run.json nor its report.json")
    if report.get("judge"):
        raise InputError(f"{file}: its report is by {report['judge']['name']}; write it again by the rules first (abliterate report)")
    try:
        figures(report)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # known before hours of work, not after them
        raise InputError(f"{file}: its figures can't be read ({first_line(error)}); it isn't as a run writes it") from None
    return Recorded(file, run, report)


def _is_whole(run: Mapping[str, Any]) -> bool:
    """Whether the parts of a record that are read here are what a run writes."""
    models = [run, run.get("derived") or {}, run.get("reference") or {}]
    tables = [run.get("settings"), run.get("prompts"), *models, *(run.get(part) or {} for part in ("versions", "resolved", "model_hashes"))]
    return (
        all(isinstance(table, dict) for table in tables)
        and all(isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in run["prompts"].values())
        and all(isinstance(model.get(key), str | None) for model in models for key in ("model_path", "hub_id", "revision"))
    )


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

    What a record's word doesn't count for (see ``not_taken``) is as ``config`` says, else the default. Raises InputError where there is
    none, this version knows no such setting, or a place is given for a model that the run hasn't.
    """
    left_out, told = not_taken(recorded, config), _told(recorded, config)
    settings = {name: value for name, value in recorded.run["settings"].items() if name not in left_out} | told
    needed = [name for name, field in _known(recorded).items() if field.is_required()]
    if missing := [name for name in needed if name in left_out]:
        raise InputError(f"{recorded.path}: {left_out[missing[0]]}")
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


def not_taken(recorded: Recorded, config: ReproduceConfig) -> dict[str, str]:
    """The settings of the record that are not as it says, and why, in words: a stranger may have written it.

    Those that ``config`` tells, or that are the default anyway, are not among them.
    """
    told, known, found = _told(recorded, config), _known(recorded), {}
    for name, value in recorded.run["settings"].items():
        if name in told or name not in known or (tuple(value) if isinstance(value, list) else value) == known[name].default:
            continue
        if (why := why_not_taken(name, value)) is not None:
            flag = flag_of(name)
            found[name] = f"{flag} {_short(value)} is not taken from a record ({why}); it is where you give {flag} yourself"
    return found


def _known(recorded: Recorded) -> dict[str, FieldInfo]:
    return _CONFIGS[recorded.kind].model_fields


def _told(recorded: Recorded, config: ReproduceConfig) -> dict[str, Any]:
    """What the command line says. Raises InputError for what the run has not."""
    told = {name: value for name, value in config.model_dump().items() if value not in (None, (), False)}
    for name in told:
        lacks = recorded.run["settings"].get(name) is None if name in _PLACES else name not in _known(recorded)
        if lacks:
            what = "model" if name in _PLACES else "setting"
            raise InputError(f"{flag_of(name)}: {recorded.path} is of the command {recorded.kind}, which has no such {what}")
    return told


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


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
