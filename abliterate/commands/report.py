"""Write a finished run's report again from its folder alone, by the current rules or by another judge."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from abliterate.checkpoint.names import PROOF
from abliterate.checkpoint.records import EditSummary, Proof
from abliterate.choice.records import Selection
from abliterate.config import ReportConfig
from abliterate.directions.file import load_directions
from abliterate.errors import InputError
from abliterate.files import Record, write_json
from abliterate.measures.agreement import kappa
from abliterate.measures.consistency.consistency import Replies, checked
from abliterate.measures.elicitation.stored import stored_scores
from abliterate.measures.parts.moved import Controls, DriftValues, Recovery
from abliterate.measures.parts.rates import Figures
from abliterate.measures.parts.sets import Compared, SetEntry
from abliterate.model.chat.parts import split_thought
from abliterate.outcomes.judges.judge import UNJUDGED, Judge, Rules
from abliterate.outcomes.judges.judging import judged_by
from abliterate.outcomes.judges.named import judge_of
from abliterate.outcomes.records import NOT_JUDGED
from abliterate.outcomes.verdict import Verdict
from abliterate.replies.samples import Sampling
from abliterate.replies.transcripts import Transcript, greedy, read, samples_of
from abliterate.report.document import excerpt, report_document, with_missing
from abliterate.report.tree.judge import Agreement, AgreementFile, Dissent, JudgeRecord
from abliterate.report.tree.report import Report
from abliterate.report.write import write_report
from abliterate.runs.folder import CONTROLS, RECOVERY, RunFolder, reopen_run

AGREEMENT = "agreement.json"
R = TypeVar("R", bound=Record)
E = TypeVar("E", SetEntry, Compared)
_AUDITS_MARGIN = 0.05


@dataclass(frozen=True)
class Row:
    """A reply of the ``base`` or ``edited`` model, with the verdict of the rules and that of the judge."""

    which: str
    transcript: Transcript
    rules: Verdict
    verdict: Verdict | None

    @property
    def differs(self) -> bool:
        return self.verdict is not None and self.rules.outcome not in (NOT_JUDGED, self.verdict.outcome)


def render_again(config: ReportConfig, path: Path) -> Report:
    """Write report.json and report.html of a run folder again, from its stored transcripts; no model is needed. Returns the report.

    If the judge is not the rules, agreement.json says how far it agrees with them. A prompt with a reply that the judge gave no outcome
    counts in no figure. Raises InputError if the folder holds no finished run.
    """
    folder = reopen_run(path)
    record, stored = folder.record(), (_stored(folder, "base"), _stored(folder, "edited"))
    before, after = map(greedy, stored)
    roles = {name: entry.role for name, entry in record.prompts.items()}
    _check_whole(path, roles, before, after)
    sampling = Sampling(record.settings.get("samples", 0), record.settings.get("seed", 0))
    _check_sampled(path, sampling, stored)
    judge = judge_of(config)
    rows = _judged(judge, before, after)
    left_out = {_key(row.transcript) for row in rows if row.verdict is None}
    base, edited = (_by_set(rows, which, left_out, roles) for which in ("base", "edited"))
    if empty := [name for name in roles if not base.get(name)]:
        raise InputError(f"{judge.name} gave no outcome for any prompt of {empty[0]!r}; the report is unchanged")
    found = checked(sampling, roles, Replies.of(base, stored[0]), Replies.of(edited, stored[1]) if edited else None)
    document = report_document(
        run=record,
        roles=roles,
        base=found.base,
        edited=found.edited,
        drift=_optional(DriftValues, path / "drift.json"),
        selection=_optional(Selection, path / "selection.json"),
        edit=_edit(path),
        margin=record.settings.get("margin", _AUDITS_MARGIN),
        controls=_optional(Controls, path / CONTROLS),
        recovery=_optional(Recovery, path / RECOVERY),
        elicited=stored_scores(path),
        consistency=found.consistency,
    )
    document = document.model_copy(update=_measured_besides(path))
    if not isinstance(judge, Rules):
        document = _under(judge, document, rows, path)
    return write_report(folder, document, found.base, found.edited, _separation(path), config.transcripts)


def _stored(folder: RunFolder, which: str) -> list[Transcript]:
    return read(folder.path / "transcripts" / f"{which}.jsonl")


def _check_whole(path: Path, roles: Mapping[str, str], before: Sequence[Transcript], after: Sequence[Transcript]) -> None:
    """Raises InputError if the run has nothing to report yet, or if transcripts are missing."""
    report, drift = _optional(Report, path / "report.json"), _optional(DriftValues, path / "drift.json")
    if report is None and drift is None:
        raise InputError(f"{path}: the run is not finished, so there is nothing to report yet; repeat the run command to resume it")
    stored = Counter(t.set for t in before)
    counted = {name: entry.n for name, entry in report.sets.items()} if report else {}
    fewer = any(stored[name] < counted.get(name, 1) for name in roles)
    unpaired = {_key(t) for t in after} != {_key(t) for t in before} if after else drift is not None
    if fewer or unpaired:
        raise InputError(f"{path}: transcripts are missing; repeat the run command to generate them again")


def _check_sampled(path: Path, sampling: Sampling, sides: Sequence[Sequence[Transcript]]) -> None:
    """Raises InputError if a sampled reply is missing."""
    for stored in sides:
        samples = samples_of(stored)
        if any(len(samples.get(_key(t), ())) < sampling.count for t in greedy(stored) if t.facts):
            raise InputError(f"{path}: sampled replies are missing; repeat the run command to generate them again")


def _judged(judge: Judge, before: Sequence[Transcript], after: Sequence[Transcript]) -> list[Row]:
    transcripts = [*before, *after]
    sides = ["base"] * len(before) + ["edited"] * len(after)
    by_rules = [t.verdict() for t in transcripts]
    verdicts = by_rules if isinstance(judge, Rules) else judged_by(judge, transcripts)
    return [Row(*row) for row in zip(sides, transcripts, by_rules, verdicts, strict=True)]


def _key(transcript: Transcript) -> tuple[str, str]:
    return transcript.set, transcript.id


def _by_set(
    rows: Sequence[Row], which: str, left_out: set[tuple[str, str]], sets: Iterable[str]
) -> dict[str, list[tuple[Transcript, Verdict]]]:
    """Verdicts of one model by set, ordered by the numbers in the prompts' ids; the files hold replies in any order."""
    found: dict[str, list[tuple[Transcript, Verdict]]] = {name: [] for name in sets}
    for row in sorted((row for row in rows if row.which == which), key=lambda row: _number(row.transcript.id)):
        if row.verdict is not None and _key(row.transcript) not in left_out:
            found[row.transcript.set].append((row.transcript, row.verdict))
    return found if any(found.values()) else {}


def _number(name: str) -> list[tuple[int, str]]:
    """A sort key that puts prompt 9 before prompt 10."""
    return [(int(part), "") if part.isascii() and part.isdigit() else (0, part) for part in re.split("([0-9]+)", name)]


def _optional(kind: type[R], file: Path) -> R | None:
    return kind.read(file) if file.is_file() else None


def _edit(path: Path) -> EditSummary | None:
    """What was edited, from the checkpoint's proof, or from the previous report if the checkpoint is no longer there."""
    proof = path / "checkpoint" / PROOF
    if proof.is_file():
        return Proof.read(proof).summary
    before = _optional(Report, path / "report.json")
    return None if before is None else before.edit


def _measured_besides(path: Path) -> dict[str, object]:
    """Parts of the previous report that depend on no judge and may be in no other file: the weights' differences, the directions."""
    before = _optional(Report, path / "report.json")
    return {part: getattr(before, part) for part in ("weights", "directions") if before and part in before.model_fields_set}


def _separation(path: Path) -> dict[str, list[float]] | None:
    """The separation on val by activation index, for each estimator; None if there is no directions file or it has an old format."""
    file = path / "directions.safetensors"
    try:
        return {name: values[0].tolist() for name, values in load_directions(file).auc.items()} if file.is_file() else None
    except InputError:
        return None


def _under(judge: Judge, report: Report, rows: Sequence[Row], path: Path) -> Report:
    """The report by another judge: figures that only the rules have are null, and the agreement of the two is added."""
    summary = agreement(judge.name, rows)
    dissents = tuple(_dissent(row) for row in rows if row.differs or row.verdict is None)
    write_json(AgreementFile(**dict(summary), rows=dissents), path / AGREEMENT)
    sets = {name: _without_the_rules(entry) for name, entry in report.sets.items()}
    return with_missing(report.model_copy(update={"sets": sets, "judge": summary}))


def agreement(name: str, rows: Sequence[Row]) -> JudgeRecord:
    """How far a judge agrees with the rules: Cohen's kappa over the rows that both judged, overall and by set."""
    sets = dict.fromkeys(row.transcript.set for row in rows)
    by_set = {of: _agreed([row for row in rows if row.transcript.set == of]) for of in sets}
    return JudgeRecord(name=name, by_set=by_set, **dict(_agreed(rows)))


def _agreed(rows: Sequence[Row]) -> Agreement:
    pairs = [(row.rules.outcome, row.verdict.outcome) for row in rows if row.verdict is not None and row.rules.outcome != NOT_JUDGED]
    found = kappa(pairs)
    return Agreement(
        kappa=found.kappa if found else None,
        kappa_ci95=(found.low, found.high) if found else None,
        n=len(pairs),
        disagreements=sum(a != b for a, b in pairs),
        unjudged=sum(row.verdict is None for row in rows),
        rules_not_judged=sum(row.rules.outcome == NOT_JUDGED for row in rows),
    )


def _dissent(row: Row) -> Dissent:
    transcript = row.transcript
    answer = split_thought(transcript.response, transcript.begins_in_thought).answer
    return Dissent(
        set=transcript.set,
        id=transcript.id,
        model=row.which,
        rules=row.rules.outcome,
        judge=UNJUDGED if row.verdict is None else row.verdict.outcome,
        rule=row.rules.rule,
        prompt=excerpt(transcript.prompt),
        response=excerpt(answer),
    )


def _without_the_rules(entry: E) -> E:
    """A set's figures without those that only the rules have: corrected for known errors, by reply length."""
    changed: dict[str, object] = {
        "base": _not_by_the_rules(entry.base),
        "edited": None if entry.edited is None else _not_by_the_rules(entry.edited),
    }
    if isinstance(entry, SetEntry) and entry.by_lang:
        changed["by_lang"] = {lang: _without_the_rules(part) for lang, part in entry.by_lang.items()}
    return entry.model_copy(update=changed)


def _not_by_the_rules(figures: Figures) -> Figures:
    changed: dict[str, object] = {"withheld": figures.withheld.model_copy(update={"corrected": None})}
    if "at_tokens" in figures.model_fields_set:
        changed["at_tokens"] = None
    return figures.model_copy(update=changed)
