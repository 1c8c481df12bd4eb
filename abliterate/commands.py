"""The single-stage commands, each a function from its config: audit, collect, edit, score, plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from abliterate.activations.file import Activations, save_activations
from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.checkpoint.index import open_index
from abliterate.config import AuditConfig, CollectConfig, EditCommandConfig, PlanConfig
from abliterate.errors import InputError
from abliterate.evaluation.summary import judge_all
from abliterate.evaluation.transcripts import read_scorable
from abliterate.model.folder import ModelFolder, open_folder
from abliterate.model.plan import EditPlan, load_direction, load_plan, plan_from_direction
from abliterate.model.source import resolve_model
from abliterate.pipeline import Session, Sets, check_destination_of_run, collect_sets, publish, respond
from abliterate.planning import lines, plan_run
from abliterate.progress import stage
from abliterate.prompts import PromptSet, load_set
from abliterate.report.card import model_card
from abliterate.report.document import report_document
from abliterate.runfolder import file_hashes, open_run


def audit(config: AuditConfig, out: Path) -> dict[str, Any]:
    """Ask one model every prompt and report the outcomes in the run folder ``out``. Returns the report."""
    source = resolve_model(config.model, config.revision)
    session = Session(config, source.path)
    open_index(source.path)
    check_destination_of_run(out, source.path)
    groups = [_asked(load_set(name), config) for name in config.prompts]
    if len({g.name for g in groups}) != len(groups):
        raise InputError("a prompt set is given twice; give each once, under its own file name")
    roles = {group.name: "audited" for group in groups}
    record = {
        "model_path": str(source.path),
        "hub_id": source.hub_id,
        "revision": source.revision,
        "model_hashes": file_hashes(source.path),
        "prompts": {g.name: {"role": "audited", "sha256": g.sha256, "n": len(g)} for g in groups},
    }
    folder = open_run(out, config.model_dump(mode="json"), record)
    path = out / "transcripts" / "base.jsonl"
    path.parent.mkdir(exist_ok=True)
    transcripts = respond(folder, session, groups, path, config.max_new_tokens, config.batch_size, "base")
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    report = report_document(run, roles, judge_all(transcripts), None, None, None, None, margin=0.05)
    return publish(folder, report, transcripts, None, None)


def _asked(group: PromptSet, config: AuditConfig) -> PromptSet:
    """The prompts to ask: of the split named, or all of a file that names no splits."""
    if config.split == "all" or not group.own_splits:
        chosen = group.prompts
        return PromptSet(group.name, chosen if config.limit is None else chosen[: config.limit])
    found = group.of(config.split, config.limit)
    if not len(found):
        raise InputError(f"{group.name}: no prompts in the split {config.split!r}; use --split all")
    return found


def collect(config: CollectConfig, out: Path) -> str:
    """Write the activations file ``out`` of the target and baseline prompts; train splits where the sets name splits."""
    if out.exists():
        raise InputError(f"{out}: already there; give another --out (nothing is overwritten)")
    session = Session(config, resolve_model(config.model, config.revision).path)
    open_index(session.folder.path)
    sets = Sets(config)
    found, positions = collect_sets(session, sets, config, ("target", "baseline"))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    save_activations(Activations(found, {}, positions, {g.name: g.sha256 for g in sets.all}), partial)
    partial.replace(out)
    return f"{out}: " + ", ".join(f"{role} {len(a.vectors)} prompts" for role, a in found.items())


def edit(config: EditCommandConfig, out: Path) -> str:
    """Edit a checkpoint with a direction or plan file into the new folder ``out``."""
    if (config.direction is None) == (config.plan is None):
        raise InputError("give either --direction FILE or --plan FILE")
    source = resolve_model(config.model, config.revision)
    folder = open_folder(source.path)
    plan = _plan_of(config, folder)
    with stage("bytes written", open_index(source.path).nbytes) as advance:
        result = edit_checkpoint(folder, plan, out, source.hub_id or source.given, lambda proof: model_card(proof, None), advance)
    return f"{out}: {result.tensors} tensors edited, at most {result.proof['worst']['left']:.2e} of the component left"


def _plan_of(config: EditCommandConfig, folder: ModelFolder) -> EditPlan:
    if config.plan is not None:
        plan = load_plan(Path(config.plan))
        return EditPlan(plan.direction, plan.strength * config.strength, plan.embedding)
    direction = load_direction(Path(str(config.direction)))
    return plan_from_direction(direction, folder.layers, config.strength, config.embedding, folder.tied)


def score(file: Path) -> Iterator[str]:
    """Each line of a transcript file with its outcome, thought, substance and rule added."""
    for row, verdict in read_scorable(file):
        yield json.dumps({**row, **asdict(verdict)}, ensure_ascii=False)


def plan(config: PlanConfig) -> list[str]:
    """The plan of a run, a figure a line."""
    return lines(plan_run(resolve_model(config.model, config.revision).path, config.prompts_per_set, config.max_new_tokens))
