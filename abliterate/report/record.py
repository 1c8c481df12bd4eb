"""The record of a run to reproduce: its settings, what it ran on, and its report."""

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
from abliterate.config.recorded import named_by, why_not_taken
from abliterate.errors import InputError, first_line
from abliterate.report.document import SCHEMA as REPORT
from abliterate.report.likeness import figures
from abliterate.runs.folder import SCHEMA as RUN
from abliterate.runs.folder import versions

Kind = Literal["run", "audit", "compare"]
Settings = RunConfig | AuditConfig | CompareConfig
_CONFIGS: dict[Kind, type[Config]] = {"run": RunConfig, "audit": AuditConfig, "compare": CompareConfig}


@dataclass(frozen=True)
class Recorded:
    """A finished run: ``run`` is its run.json, ``report`` its report.json, ``path`` the file that was read."""

    path: Path
    run: Mapping[str, Any]
    report: Mapping[str, Any]

    @property
    def kind(self) -> Kind:
        """The command that made the run, told by settings that only that command has."""
        settings = self.run["settings"]
        return "compare" if "derived" in settings else "run" if "target" in settings else "audit"


def read_record(path: Path) -> Recorded:
    """Read a run's folder, its run.json with the report.json beside it, or a report.json alone, which includes run.json.

    Raises InputError if ``path`` is none of these, the run did not finish, or its report was not judged by the rules.
    """
    file = path / "run.json" if path.is_dir() else path
    found = _json(file)
    if found.get("schema") == RUN:
        beside = file.with_name("report.json")
        if not beside.is_file():
            raise InputError(f"{file}: no report.json beside it, so there is nothing to compare with; the run did not finish")
        run, report = found, _json(beside)
    else:
        run, report = found.get("run") or {}, found
    if report.get("schema") != REPORT or not isinstance(run, dict) or run.get("schema") != RUN or not _is_whole(run):
        raise InputError(f"{file}: not the run.json or report.json of a run")
    if report.get("judge"):
        raise InputError(
            f"{file}: its report was judged by {report['judge']['name']}; let the rules judge it first (abliterate report RUN)"
        )
    try:
        figures(report)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # fail before hours of work, not after them
        raise InputError(f"{file}: its figures can't be read ({first_line(error)}); the file is damaged or not from abliterate") from None
    return Recorded(file, run, report)


def _is_whole(run: Mapping[str, Any]) -> bool:
    """Whether the parts of a record that this module reads have the types that a run writes."""
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
        raise InputError(f"{file}: not the run.json or report.json of a run")
    return found


def settings_of(recorded: Recorded, config: ReproduceConfig) -> Settings:
    """The settings of the run, with local models at their present place and Hub models at the recorded commit.

    Settings that are not taken from a record (see ``not_taken``) have the value in ``config``, else the default. Raises InputError if such
    a setting has no default, this version does not accept a setting, or ``config`` names a place for a model that the run does not have.
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
            f"{recorded.path}: the setting {'.'.join(map(str, first['loc']))!r} is not accepted ({first['msg']}); "
            f"the run was made by version {recorded.run.get('abliterate')}, this is version {__version__}"
        ) from None


def not_taken(recorded: Recorded, config: ReproduceConfig) -> dict[str, str]:
    """The settings that are not taken from the record, since a stranger may have written it, each with a sentence that says why.

    Settings that ``config`` gives or that have the default value are left out.
    """
    told, known, found = _told(recorded, config), _known(recorded), {}
    for name, value in recorded.run["settings"].items():
        if name in told or name not in known or (tuple(value) if isinstance(value, list) else value) == known[name].default:
            continue
        if (why := why_not_taken(name, value)) is not None:
            flag = flag_of(name)
            found[name] = f"{flag} {_short(value)} is not taken from a record ({why}); give {flag} yourself to use it"
    return found


def _known(recorded: Recorded) -> dict[str, FieldInfo]:
    return _CONFIGS[recorded.kind].model_fields


def _told(recorded: Recorded, config: ReproduceConfig) -> dict[str, Any]:
    """The settings given on the command line. Raises InputError for one that the run does not have."""
    told = {name: value for name, value in config.model_dump().items() if value not in (None, (), False)}
    for name in told:
        is_model = named_by(name) == "model"
        lacks = recorded.run["settings"].get(name) is None if is_model else name not in _known(recorded)
        if lacks:
            what = "model" if is_model else "setting"
            raise InputError(f"{flag_of(name)}: {recorded.path} was made by the command {recorded.kind}, which has no such {what}")
    return told


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _models(recorded: Recorded) -> list[tuple[str, str, Mapping[str, Any]]]:
    """For each model: the names of its settings for place and revision, and its entry in the record."""
    run = recorded.run
    first = ("base", "base_revision") if recorded.kind == "compare" else ("model", "revision")
    return [
        (*first, run),
        ("derived", "derived_revision", run.get("derived") or {}),
        ("reference", "reference_revision", run.get("reference") or {}),
    ]


def _where(given: str, path: str | None) -> str:
    """A folder as given, or its recorded absolute path if the given one does not exist from here."""
    is_path = "/" in given and "://" not in given
    return path if path is not None and is_path and not Path(given).expanduser().exists() and Path(path).is_dir() else given


def differences(recorded: Recorded, now: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the first run, by kind: settings, versions, resolved values, files of the models.

    ``now``: the run.json of the second run.
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
    """The values that differ, by key: [before, now]; null if missing."""
    keys = [*before, *(key for key in now if key not in before)]
    return {key: [before.get(key), now.get(key)] for key in keys if before.get(key) != now.get(key)}
