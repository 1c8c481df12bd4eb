"""Repeat a recorded run, and compare the figures of both."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from abliterate.commands.audit import audit
from abliterate.commands.compare import compare as compare_models
from abliterate.commands.run import run
from abliterate.config import AuditConfig, CompareConfig, ModelConfig, ReproduceConfig, RunConfig
from abliterate.errors import InputError
from abliterate.files import write_json
from abliterate.prompts import PromptSet, RoleSets
from abliterate.prompts.asked import asked_sets
from abliterate.report.likeness import Compared, by_measure, compare, totals
from abliterate.report.record import Recorded, Settings, differences, not_taken, read_record, settings_of
from abliterate.report.tree.report import Report
from abliterate.report.tree.reproduction import SCHEMA, FigureRow, Reproduction
from abliterate.runs.folder import clock_of
from abliterate.terminal.progress import say

FILE = "reproduction.json"
NOT_COMPARED = ("run", "cost", "not_measured", "directions")  # parts of a report without figures of their own


def reproduce(config: ReproduceConfig, path: Path, out: Path) -> Reproduction:
    """Repeat the run that ``path`` (a run's folder, run.json or report.json) records, into the run folder ``out``.

    Returns the content of its ``reproduction.json``; the same call again resumes. Raises InputError if the record, the models or the
    prompts can't be used: prompts must have the recorded hashes.
    """
    recorded = read_record(path)
    if out.resolve() == recorded.path.parent.resolve():
        raise InputError(f"{out}: is the recorded run itself; give another --out")
    settings = settings_of(recorded, config)
    for words in not_taken(recorded, config).values():
        say(f"{recorded.path}: {words}")
    check_prompts(recorded, settings)
    report = _run_again(settings, out, clock_of(recorded.run, recorded.path))
    document = document_of(recorded, report, compare(recorded.report, report))
    write_json(document, out / FILE)
    return document


def first_model(config: ReproduceConfig, path: Path) -> ModelConfig | None:
    """The settings of the model that the run begins with; None if no model is asked."""
    settings = settings_of(read_record(path), config)
    if isinstance(settings, CompareConfig):
        return None if settings.weights_only else settings.side("base")
    return settings


def _run_again(settings: Settings, out: Path, clock: datetime | None) -> Report:
    if isinstance(settings, CompareConfig):
        return compare_models(settings, out, clock)
    return run(settings, out, clock) if isinstance(settings, RunConfig) else audit(settings, out, clock)


def check_prompts(recorded: Recorded, settings: Settings) -> None:
    """Raises InputError if a set's prompts are not the recorded ones, by the hash of all their fields."""
    now = {group.name: group.sha256 for group in _sets(settings)}
    for name, entry in recorded.run.prompts.items():
        if name not in now:
            raise InputError(f"the set {name!r} of {recorded.path} does not exist any more")
        if now[name] != entry.sha256:
            raise InputError(
                f"{name}: its prompts are not those of {recorded.path} (hash {entry.sha256[:12]}, now {now[name][:12]}); "
                "restore the files as they were"
            )


def _sets(settings: Settings) -> Sequence[PromptSet]:
    if isinstance(settings, RunConfig):
        return RoleSets(settings.target, settings.baseline, settings.keep, settings.harmless, settings.limit).all
    if isinstance(settings, AuditConfig):
        return asked_sets(settings)
    return [] if settings.weights_only else asked_sets(settings.side("base"))


def document_of(recorded: Recorded, report: Report, found: Sequence[Compared]) -> Reproduction:
    """The content of reproduction.json."""
    return Reproduction(
        format=SCHEMA,
        of=str(recorded.path),
        kind=recorded.kind,
        totals=totals(found),
        by_measure=tuple(by_measure(found)),
        differences=differences(recorded, report.run),
        figures=tuple(map(_row, found)),
        not_compared=NOT_COMPARED,
    )


def _row(one: Compared) -> FigureRow:
    before, now = one.before, one.now
    return FigureRow(
        path=one.path,
        before=before.value if before else None,
        ci95=before.interval if before else None,
        of=before.of if before else None,
        now=now.value if now else None,
        verdict=one.verdict,
    )
