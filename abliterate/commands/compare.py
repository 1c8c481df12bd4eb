"""Compare two existing models, before and after an edit: their replies and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path

from transformers import AutoTokenizer

from abliterate.checkpoint.difference import Difference, differences, work_of_difference
from abliterate.checkpoint.records import WeightsFile, WeightsNotCompared
from abliterate.checkpoint.verdict import summary
from abliterate.compute.session import Session
from abliterate.config import AuditConfig, CompareConfig, is_url
from abliterate.config.asking import Which
from abliterate.errors import InputError
from abliterate.files import check_destination, write_json
from abliterate.measures.consistency.consistency import Replies, checked
from abliterate.measures.elicitation.stage import Inquiry, inquiry_of
from abliterate.measures.elicitation.stored import stored_scores
from abliterate.measures.final_test import benchmarked, drift_base, drift_edited
from abliterate.measures.parts.moved import DriftValues
from abliterate.measures.reference import Reference, open_reference, recovery_base, recovery_edited
from abliterate.measures.summary import judge_all
from abliterate.model.agreement import open_checkpoint
from abliterate.model.chat.clock import now
from abliterate.model.folder import ModelFolder
from abliterate.model.source import ModelSource, resolve_model
from abliterate.prompts import PromptSet, load_set
from abliterate.prompts.asked import asked_sets
from abliterate.replies.engine import engine_of, foresee, reply_length, wanted_of
from abliterate.replies.responding import respond
from abliterate.replies.samples import Sampling, check_facts, sampling_of
from abliterate.replies.served import Wanted
from abliterate.replies.transcripts import Transcript
from abliterate.report.document import report_document
from abliterate.report.tree.report import Report
from abliterate.report.write import write_report
from abliterate.runs.document import UNRESOLVED, ModelPlace, RunRecord
from abliterate.runs.folder import WEIGHTS, RunFolder, open_run, recorded_clock
from abliterate.runs.record import open_model, resolved, run_record
from abliterate.terminal.progress import say, stage

_DRIFT_SET = "harmless"


@dataclass(frozen=True)
class ComparedModel:
    """One of the two models. Without a ``source`` it is only on a server. ``config`` and ``session`` are set only if it is asked."""

    source: ModelSource | None
    folder: ModelFolder | None
    config: AuditConfig | None = None
    session: Session | None = None


def compare(config: CompareConfig, out: Path, clock: datetime | None = None) -> Report:
    """Compare two models into the run folder ``out``; the same call again resumes. Returns the report.

    ``clock``: as for ``run``; both models see the same time. Raises InputError for a model, a prompt set or a folder that can't be used.
    """
    clock = recorded_clock(out) or clock or now()
    base, derived = _opened(config, "base", out, clock), _opened(config, "derived", out, clock)
    groups = [] if base.config is None else asked_sets(base.config)
    if base.config is not None:
        check_facts(base.config, groups)
    roles = {group.name: "audited" if i < len(config.prompts) else "keep" for i, group in enumerate(groups)}
    for one in (base, derived):
        if one.config is not None and one.session is not None:
            one.session.check_prompts({group.name: group for group in groups}, reply_length(one.config, one.session))
    inquiry = None if base.config is None else _inquiry(base.config, base, derived, groups)
    reference = _reference(config, base, derived, groups)
    record = _record(config, base, derived, groups, roles)
    folder = open_run(out, reference.recorded(record) if reference else record)
    if base.config is not None and derived.config is not None and not (out / "report.json").exists():
        foresee(base.config)
        foresee(derived.config)
    folder.stage("weights", WEIGHTS, lambda: _weights(base, derived), write_json, WeightsFile.read)
    by_base, by_derived, drift = _asked(folder, base, derived, groups, config.limit, reference, inquiry) if groups else ([], [], None)
    before, after = judge_all(by_base), judge_all(by_derived)
    recovery = None
    if base.session is not None and derived.session is not None:
        recovery = recovery_edited(folder, reference, derived.session, groups, roles, before, after)
    sessions = {"base": base.session, "edited": derived.session}
    if config.lm_eval and base.session is not None:
        benchmarked(folder, config, {which: session for which, session in sessions.items() if session is not None})
    elicited = None if inquiry is None else stored_scores(out)
    sampling = Sampling() if base.config is None else sampling_of(base.config)
    found = checked(sampling, roles, Replies.of(before, by_base), Replies.of(after, by_derived))
    report = report_document(
        folder.record(), roles, found.base, found.edited, drift, None, None, config.margin,
        recovery=recovery, elicited=elicited, consistency=found.consistency,
    )  # fmt: skip
    return write_report(folder, report, found.base, found.edited, None)


def _reference(config: CompareConfig, base: ComparedModel, derived: ComparedModel, groups: Sequence[PromptSet]) -> Reference | None:
    if config.reference is None or base.config is None or base.session is None or derived.session is None:
        return None
    return open_reference(config.reference, base.config, [base.session, derived.session], groups)


def _inquiry(config: AuditConfig, base: ComparedModel, derived: ComparedModel, groups: Sequence[PromptSet]) -> Inquiry | None:
    """The facts that both models are asked for, as matched with the base's tokenizer; None without --elicit."""
    inquiry = inquiry_of(config, groups, base.session)
    if inquiry is not None and derived.session is not None:
        inquiry.check_readable(derived.session)
    return inquiry


def _opened(config: CompareConfig, which: Which, out: Path, clock: datetime) -> ComparedModel:
    model = config.base if which == "base" else config.derived
    if config.weights_only:
        source = resolve_model(model, config.base_revision if which == "base" else config.derived_revision)
        check_destination(out / ".new", source.path)
        return ComparedModel(source, open_checkpoint(source.path, config.trust_remote_code, config.layout_file)[0])
    asked = config.side(which)
    if is_url(model):
        return ComparedModel(None, None, asked)
    source, session = open_model(asked, out, clock)
    return ComparedModel(source, session.folder, asked, session)


def _record(
    config: CompareConfig, base: ComparedModel, derived: ComparedModel, groups: Sequence[PromptSet], roles: dict[str, str]
) -> RunRecord:
    """The record for run.json: the base as in any run, and the same for the derived model under its own key."""
    described = {group.name: group.used_as(roles[group.name]) for group in groups}
    settled = [resolved(one.session, one.config, None) if one.session and one.config else UNRESOLVED for one in (base, derived)]
    record = run_record("compare", config, base.source, described, settled[0])
    other = run_record("compare", config, derived.source, {}, settled[1])
    hashes = [*(record.model_hashes or {}).items()]
    hashes += [(f"derived/{name}", digest) for name, digest in (other.model_hashes or {}).items()]
    place = ModelPlace(resolved=other.resolved, model_path=other.model_path, hub_id=other.hub_id, revision=other.revision)
    return record.model_copy(update={"model_hashes": dict(hashes) or None, "derived": place})


def _weights(base: ComparedModel, derived: ComparedModel) -> WeightsFile:
    """The differences between the weights with a verdict, or the reason why they are not compared."""
    why, found = _incomparable(base, derived), Difference()
    if why is None and base.folder is not None and derived.folder is not None:
        try:
            with stage("bytes of weights compared", work_of_difference(base.folder)) as advance:
                found = differences(base.folder, derived.folder, advance)
        except InputError as error:  # the replies can still be compared
            why = str(error)
    if why is not None:
        say(f"the weights are not compared: {why}")
        return Difference().table(WeightsNotCompared(compared=False, why=why))
    return found.table(summary(found))


def _incomparable(base: ComparedModel, derived: ComparedModel) -> str | None:
    """Why the weights of two models can't be compared; None if they can."""
    if base.folder is None or derived.folder is None:
        return "a server doesn't show its model's weights"
    kinds = [folder.config.model_type for folder in (base.folder, derived.folder)]
    if kinds[0] != kinds[1]:
        return f"the models are of different architectures ({kinds[0]}, {kinds[1]})"
    sizes = [f"{folder.layers} blocks of width {folder.d_model}" for folder in (base.folder, derived.folder)]
    if sizes[0] != sizes[1]:
        return f"the models are of different sizes ({sizes[0]}; {sizes[1]})"
    if moved := _moved_token(base.folder, derived.folder):
        return f"the models have different tokenizers (the token {moved!r} has another id)"
    return None


def _moved_token(base: ModelFolder, derived: ModelFolder) -> str | None:
    """A token that has another id in the other tokenizer; None if there is none, or if a folder has no tokenizer."""
    files = [folder.path / "tokenizer.json" for folder in (base, derived)]
    if all(file.is_file() for file in files) and files[0].read_bytes() == files[1].read_bytes():
        return None
    try:
        old, new = (
            AutoTokenizer.from_pretrained(f.path, trust_remote_code=f.trust_remote_code, local_files_only=True).get_vocab()
            for f in (base, derived)
        )
    except Exception:  # transformers raises many kinds for a missing or broken tokenizer
        return None
    return next((token for token, number in old.items() if new.get(token, number) != number), None)


def _asked(
    folder: RunFolder,
    base: ComparedModel,
    derived: ComparedModel,
    groups: Sequence[PromptSet],
    limit: int | None,
    reference: Reference | None,
    inquiry: Inquiry | None,
) -> tuple[list[Transcript], list[Transcript], DriftValues | None]:
    """Both models' replies to the same prompts, and the drift of the derived one on harmless ones; one is in memory at a time."""
    before = _replies(folder, base, groups, "base")
    group = _read_by_both(load_set(_DRIFT_SET).of("test", limit), base, derived)
    measured = None
    if alike := _predicts_alike(base, derived) and len(group) > 0:
        assert base.session is not None
        harmless = judge_all([transcript for transcript in before if transcript.set == group.name])
        measured = drift_base(folder, base.session, group, harmless.get(group.name, []))
    if base.session is not None:
        if inquiry is not None:
            inquiry.scores(folder, base.session, "base")
        recovery_base(folder, reference, base.session, groups)
        base.session.release()
    after = _replies(folder, derived, groups, "edited")
    if inquiry is not None and derived.session is not None:
        inquiry.scores(folder, derived.session, "edited")
    if not alike or derived.session is None:
        return before, after, None
    return before, after, drift_edited(folder, derived.session, group, measured)


def _read_by_both(group: PromptSet, base: ComparedModel, derived: ComparedModel) -> PromptSet:
    """The prompts that both models can read. The user did not choose them, so longer ones are left out without an error."""
    for one in (base, derived):
        if one.session is not None:
            group = replace(group, prompts=tuple(one.session.context.readable(one.session.tokenizer(), group)))
    return group


def _replies(folder: RunFolder, of: ComparedModel, groups: Sequence[PromptSet], which: str) -> list[Transcript]:
    assert of.config is not None
    url, wanted = (of.config.model, Wanted()) if of.source is None else (None, wanted_of(of.source))
    return respond(folder, partial(engine_of, of.config, of.session, wanted, url), groups, which, sampling_of(of.config))


def _predicts_alike(base: ComparedModel, derived: ComparedModel) -> bool:
    """Whether both models are local and have the same tokens, so that their predictions can be compared."""
    if base.folder is None or derived.folder is None:
        return False
    sizes = {int(getattr(folder.config, "vocab_size", 0)) for folder in (base.folder, derived.folder)}
    return len(sizes) == 1 and _moved_token(base.folder, derived.folder) is None
