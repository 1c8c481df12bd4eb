"""The single-stage commands, each a function from its config: audit, collect, edit, verify, score, plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from abliterate.activations.file import load_activations, save_activations
from abliterate.checkpoint.adapter import write_adapter
from abliterate.checkpoint.edit import edit_checkpoint, work_of
from abliterate.checkpoint.tasks import edit_tasks
from abliterate.checkpoint.verify import steps
from abliterate.checkpoint.verify import verify as verify_checkpoint
from abliterate.config import AuditConfig, CollectConfig, DirectionsConfig, EditCommandConfig, JudgeConfig, PlanConfig, VerifyConfig, is_url
from abliterate.directions.file import save_direction
from abliterate.directions.one import one_direction
from abliterate.directions.quality import measured, quality_document
from abliterate.errors import InputError
from abliterate.evaluation.engine import engine_of, reply_length, wanted_of
from abliterate.evaluation.judges.judging import judged_by, unjudged_by
from abliterate.evaluation.judges.named import judge_of
from abliterate.evaluation.served import Wanted
from abliterate.evaluation.summary import judge_all
from abliterate.evaluation.transcripts import line_of, read_rows
from abliterate.finaltest import benchmarked, publish, respond
from abliterate.model.agreement import open_checkpoint
from abliterate.model.folder import ModelFolder, open_folder
from abliterate.model.plan import EditPlan, load_direction, load_plan, plan_from_direction, resolve_embedding
from abliterate.model.source import edited_folder, resolve_model
from abliterate.pipeline import gathered, open_model, positions_of, resolved, run_record
from abliterate.place import check_new
from abliterate.planning.plan import as_json, plan_run
from abliterate.planning.text import lines
from abliterate.progress import stage
from abliterate.prompts import PromptSet, Role, RoleSets, load_asked
from abliterate.prompts.roles import ROLES
from abliterate.report.card import model_card
from abliterate.report.document import report_document, write_json
from abliterate.runfolder import open_run, recorded_clock


def audit(config: AuditConfig, out: Path, clock: datetime | None = None) -> dict[str, Any]:
    """Ask one model every prompt and report the outcomes in the run folder ``out``. Returns the report. ``clock`` as for ``run``."""
    on_server = is_url(config.model)
    source, session = (None, None) if on_server else open_model(config, out, recorded_clock(out) or clock)
    wanted = Wanted() if source is None else wanted_of(source)
    groups = asked_sets(config)
    described = {g.name: {"role": "audited", "sha256": g.sha256, "n": len(g)} for g in groups}
    record = run_record(source, described, resolved(session, config, None) if session else {"seeds": {"bootstrap": 0}})
    if session is not None:
        session.check_prompts({group.name: group for group in groups}, reply_length(config, session))
    folder = open_run(out, config.model_dump(mode="json"), record)
    ask = partial(engine_of, config, session, wanted, config.model if on_server else None)
    judged = judge_all(respond(folder, ask, groups, "base"))
    if session is not None:
        benchmarked(folder, config, {"base": session})
    roles = {group.name: "audited" for group in groups}
    report = report_document(folder.record(), roles, judged, None, None, None, None, margin=0.05)
    return publish(folder, report, judged, None, None)


def asked_sets(config: AuditConfig) -> list[PromptSet]:
    """The prompts to ask, set by set. Raises InputError where two sets have one name, or one has no prompts to ask."""
    groups = [_asked(load_asked(name), config) for name in config.prompts]
    if len({g.name for g in groups}) != len(groups):
        raise InputError("a prompt set is given twice; give each once, under its own file name")
    return groups


def _asked(group: PromptSet, config: AuditConfig) -> PromptSet:
    """The prompts to ask: of the split named, or all of a file that names no splits."""
    if config.split == "all" or not group.own_splits:
        return group.first(config.limit)
    found = group.of(config.split, config.limit)
    if not len(found):
        raise InputError(f"{group.name}: no prompts in the split {config.split!r}; use --split all")
    return found


def collect(config: CollectConfig, out: Path) -> str:
    """Write the activations file ``out`` of the target and baseline prompts, and with keep sets of these and of harmless prompts.

    Train splits where the sets name splits; where all of them do, the val vectors too, by which directions are judged.
    """
    check_new(out)
    _, session = open_model(config, out.parent)
    harmless = config.harmless if config.keep or "harmless" in config.model_fields_set else None
    sets = RoleSets(config.target, config.baseline, config.keep, harmless, config.limit)
    roles: tuple[Role, ...] = tuple(role for role in ROLES if sets.sets(role))
    split = all(len(group.of("val")) and group.own_splits for role in roles for group in sets.sets(role))
    val = {role: sets.prompts(role, "val") for role in roles if split}
    train = {role: sets.estimating(role) for role in roles}
    session.check_prompts({role: [*train[role], *val.get(role, [])] for role in roles})
    found = gathered(session.model, sets, train, val, positions_of(session.model, config))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    save_activations(found, partial)
    partial.replace(out)
    return f"{out}: " + ", ".join(f"{role} {len(found.train[role].vectors)} prompts" for role in roles)


def directions(config: DirectionsConfig, given: Path, out: Path | None = None) -> dict[str, Any]:
    """How good the directions of collected activations are, as directions.json says it; one of them as a direction file ``out``.

    ``given`` is an activations file or a run folder.
    """
    if out is not None:
        check_new(out)
    if (out is None) != (config.estimator is None):
        raise InputError("--out DIR_FILE and --estimator NAME go together: the file, and whose direction is written into it")
    activations = load_activations(given / "activations.safetensors" if given.is_dir() else given)
    found = measured(activations, config.estimators)
    if out is not None:
        direction = one_direction(found, str(config.estimator), config.layer, config.position)
        out.parent.mkdir(parents=True, exist_ok=True)
        save_direction(direction, out)
    return quality_document(activations, found)


def edit(config: EditCommandConfig, out: Path) -> str:
    """Edit a checkpoint with a direction or plan file into the new folder ``out``."""
    source = resolve_model(config.model, config.revision)
    folder, index = open_checkpoint(source.path, config.trust_remote_code, config.layout_file)
    plan = _plan_of(config, folder)
    if config.as_adapter:
        edited = sum(index.tensors[name].nbytes for name in edit_tasks(index, folder, plan) if name in index.tensors)
        with stage("bytes read", edited) as advance:
            matrices, size = write_adapter(folder, plan, out, source.name, advance)
        return f"{out}: a LoRA adapter of {size / 1e6:.2f} MB that changes {matrices} matrices"
    with stage("bytes written and proven", work_of(folder, plan)) as advance:
        result = edit_checkpoint(folder, plan, out, source.name, lambda proof: model_card(proof, None), advance, source.revision)
    return f"{out}: {result.tensors} tensors edited, at most {result.proof['worst']['left']:.2e} of the component left"


def _plan_of(config: EditCommandConfig, folder: ModelFolder) -> EditPlan:
    if config.plan is not None:
        plan = load_plan(Path(config.plan)).scaled(config.strength)
        if config.embedding != "auto":
            plan = replace(plan, embedding=resolve_embedding(config.embedding, plan.same_everywhere(), folder.tied))
        return replace(plan, keep_norms=True) if config.norms == "keep" else plan
    direction = load_direction(Path(str(config.direction)))
    return plan_from_direction(direction, folder.layers, config.strength, config.embedding, folder.tied, config.norms == "keep")


def verify(config: VerifyConfig, checkpoint: Path) -> str:
    """Derive the proof of an edited checkpoint, or of the one in a run's folder, again. Raises CheckError with the first difference."""
    checkpoint = edited_folder(checkpoint)
    folder = open_folder(checkpoint, config.trust_remote_code, config.layout_file)
    base = None
    if config.base is not None:
        base, _ = open_checkpoint(resolve_model(config.base, config.revision).path, config.trust_remote_code, config.layout_file)
    with stage("tensors checked", steps(folder, base is not None)) as advance:
        measured, compared = verify_checkpoint(folder, base, advance)
    rest = f", all {compared} compared with the base" if base is not None else "; the others were not looked at (give --base)"
    return f"{checkpoint}: {measured} edited tensors are as proven{rest}"


def score(file: Path, config: JudgeConfig) -> Iterator[str]:
    """Each line of a transcript file with its outcome, thought, substance and rule added."""
    judge, rows = judge_of(config), list(read_rows(file))
    verdicts = judged_by(judge, [transcript for _, transcript in rows])
    for (row, _), verdict in zip(rows, verdicts, strict=True):
        yield line_of({**row, **(unjudged_by(judge) if verdict is None else asdict(verdict))})


def plan(config: PlanConfig, figures: Path | None = None) -> list[str]:
    """The plan of a run, a figure or a few a line; with ``figures`` all of them in that file too, as JSON."""
    if figures is not None:
        check_new(figures, "--json")
    made = plan_run(config, resolve_model(config.model, config.revision, weights=False).path)
    if figures is not None:
        write_json(as_json(made), figures)
    return lines(made)
