"""The record of a run to reproduce: its settings, what it ran on, and its report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from abliterate import __version__
from abliterate.config import AuditConfig, CompareConfig, Config, ReproduceConfig, RunConfig
from abliterate.config.messages import flag_of
from abliterate.config.recorded import named_by, why_not_taken
from abliterate.errors import InputError
from abliterate.files import Json, Record
from abliterate.report.tree.report import Report
from abliterate.report.tree.reproduction import Change, Differences
from abliterate.runs.document import SCHEMA as RUN
from abliterate.runs.document import Kind, ModelPlace, RunRecord
from abliterate.runs.folder import versions

Settings = RunConfig | AuditConfig | CompareConfig
R = TypeVar("R", bound=Record)
_CONFIGS: dict[Kind, type[Config]] = {"run": RunConfig, "audit": AuditConfig, "compare": CompareConfig}


@dataclass(frozen=True)
class Recorded:
    """A finished run: ``run`` is its run.json, ``report`` its report.json, ``path`` the file that was read."""

    path: Path
    run: RunRecord
    report: Report

    @property
    def kind(self) -> Kind:
        """The command that made the run."""
        return self.run.kind


def read_record(path: Path) -> Recorded:
    """Read a run's folder, its run.json with the report.json beside it, or a report.json alone, which includes run.json.

    Raises InputError if ``path`` is none of these, the run did not finish, or its report was not judged by the rules.
    """
    file = path / "run.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such file; give a run's folder, its run.json or its report.json")
    if _schema_of(file) == RUN:
        beside = file.with_name("report.json")
        if not beside.is_file():
            raise InputError(f"{file}: no report.json beside it, so there is nothing to compare with; the run did not finish")
        run, report = _read(RunRecord, file), _read(Report, beside)
    else:
        report = _read(Report, file)
        run = report.run
    if report.judge:
        raise InputError(f"{file}: its report was judged by {report.judge.name}; let the rules judge it first (abliterate report RUN)")
    return Recorded(file, run, report)


def _schema_of(file: Path) -> object:
    """The schema that a file says it follows; None if it is no JSON object."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return found.get("schema") if isinstance(found, dict) else None


def _read(kind: type[R], file: Path) -> R:
    """Raises InputError for a file of another kind, or one that lacks a part."""
    try:
        return kind.read(file)
    except InputError as error:
        raise InputError(f"{file}: not the run.json or report.json of a run ({str(error).removeprefix(f'{file}: ')})") from None


def settings_of(recorded: Recorded, config: ReproduceConfig) -> Settings:
    """The settings of the run, with local models at their present place and Hub models at the recorded commit.

    Settings that are not taken from a record (see ``not_taken``) have the value in ``config``, else the default. Raises InputError if such
    a setting has no default, this version does not accept a setting, or ``config`` names a place for a model that the run does not have.
    """
    left_out, told = not_taken(recorded, config), _told(recorded, config)
    settings = {name: value for name, value in recorded.run.settings.items() if name not in left_out} | told
    needed = [name for name, field in _known(recorded).items() if field.is_required()]
    if missing := [name for name in needed if name in left_out]:
        raise InputError(f"{recorded.path}: {left_out[missing[0]]}")
    for name, revision, record in _models(recorded):
        if name in told or settings.get(name) is None:
            continue
        if record is None or not record.hub_id:
            settings[name] = _where(str(settings[name]), record.model_path if record else None)
        elif revision in settings and settings[revision] is None:
            settings[revision] = record.revision
    try:
        return _CONFIGS[recorded.kind](**settings)  # type: ignore[return-value]
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{recorded.path}: the setting {'.'.join(map(str, first['loc']))!r} is not accepted ({first['msg']}); "
            f"the run was made by version {recorded.run.abliterate}, this is version {__version__}"
        ) from None


def not_taken(recorded: Recorded, config: ReproduceConfig) -> dict[str, str]:
    """The settings that are not taken from the record, since a stranger may have written it, each with a sentence that says why.

    Settings that ``config`` gives or that have the default value are left out.
    """
    told, known, found = _told(recorded, config), _known(recorded), {}
    for name, value in recorded.run.settings.items():
        if name in told or name not in known or (tuple(value) if isinstance(value, list) else value) == known[name].default:
            continue
        if (why := why_not_taken(name, value)) is not None:
            flag = flag_of(name)
            found[name] = f"{flag} {_short(value)} is not taken from a record ({why}); give {flag} yourself to use it"
    return found


def _known(recorded: Recorded) -> dict[str, FieldInfo]:
    return _CONFIGS[recorded.kind].model_fields


def _told(recorded: Recorded, config: ReproduceConfig) -> Json:
    """The settings given on the command line. Raises InputError for one that the run does not have."""
    told = {name: value for name, value in config.model_dump().items() if value not in (None, (), False)}
    for name in told:
        is_model = named_by(name) == "model"
        lacks = recorded.run.settings.get(name) is None if is_model else name not in _known(recorded)
        if lacks:
            what = "model" if is_model else "setting"
            raise InputError(f"{flag_of(name)}: {recorded.path} was made by the command {recorded.kind}, which has no such {what}")
    return told


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _models(recorded: Recorded) -> list[tuple[str, str, RunRecord | ModelPlace | None]]:
    """For each model: the names of its settings for place and revision, and its entry in the record."""
    run = recorded.run
    first = ("base", "base_revision") if recorded.kind == "compare" else ("model", "revision")
    return [
        (*first, run),
        ("derived", "derived_revision", run.derived),
        ("reference", "reference_revision", run.reference),
    ]


def _where(given: str, path: str | None) -> str:
    """A folder as given, or its recorded absolute path if the given one does not exist from here."""
    is_path = "/" in given and "://" not in given
    return path if path is not None and is_path and not Path(given).expanduser().exists() and Path(path).is_dir() else given


def differences(recorded: Recorded, now: RunRecord) -> Differences:
    """What differs from the first run, by kind: settings, versions, resolved values, files of the models.

    ``now``: the run.json of the second run.
    """
    before = recorded.run
    return Differences(
        settings=_changed(before.settings, now.settings),
        versions=_changed({"abliterate": before.abliterate, **before.versions}, {"abliterate": __version__, **versions()}),
        resolved=_changed(before.resolved.document(), now.resolved.document()),
        model_hashes=_changed(before.model_hashes or {}, now.model_hashes or {}),
    )


def _changed(before: Mapping[str, object], now: Mapping[str, object]) -> dict[str, Change]:
    """The values that differ, by key; None if missing."""
    keys = [*before, *(key for key in now if key not in before)]
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}
