"""The caller of stages: prompts > activations > directions > selection > edit > evaluation > report.

Each stage's result is a file in the run folder, so a run that is killed goes on from the last finished stage.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from abliterate.activations.collect import Group, SetActivations, Watched, collect
from abliterate.activations.file import Activations, load_activations, save_activations
from abliterate.checkpoint.edit import check_editable, edit_checkpoint, work_of
from abliterate.checkpoint.proof import NAME as PROOF
from abliterate.checkpoint.write import check_destination
from abliterate.config import AuditConfig, CollectConfig, ModelConfig, RunConfig, is_url
from abliterate.directions.estimate import Directions, check_separable, estimate, keep_axes
from abliterate.directions.file import load_directions, save_directions
from abliterate.directions.keep import KEEP
from abliterate.directions.quality import quality_document, sentences_on_scope
from abliterate.evaluation.benchmarks import check_installed
from abliterate.evaluation.engine import edited_engine, engine_of, foresee, reply_length, wanted_of
from abliterate.evaluation.summary import judge_all
from abliterate.finaltest import benchmarked, drift_base, drift_edited, publish, random_control, respond
from abliterate.model.clock import reads_clock
from abliterate.model.load import pick_dtype
from abliterate.model.plan import EditPlan, load_plan, save_plan
from abliterate.model.session import Session
from abliterate.model.source import ModelSource, resolve_model
from abliterate.model.template import encode, template_positions
from abliterate.progress import say, stage
from abliterate.prompts import Prompt, PromptSet, Role, RoleSets
from abliterate.prompts.promptset import Split
from abliterate.reference import open_reference, recovery_base, recovery_edited
from abliterate.report.card import model_card
from abliterate.report.document import read_json, report_document, write_json
from abliterate.runfolder import RunFolder, file_hashes, open_run, recorded_clock
from abliterate.selection import select
from abliterate.tuning.examples import CONTINUED, behind_prompts
from abliterate.tuning.heard import keep_heard
from abliterate.tuning.kept import Kept
from abliterate.tuning.probe import probe_of
from abliterate.tuning.replies import short
from abliterate.tuning.way import Way, way_of

SPLITS: tuple[Split, ...] = ("train", "val")  # what is known before the final test
MIN_PER_LANGUAGE = 16  # prompts of a language in a role, for a direction of its own


def run(config: RunConfig, out: Path, clock: datetime | None = None) -> dict[str, Any]:
    """The whole pipeline into the folder ``out``; the same call again goes on where it stopped. Returns the report.

    ``clock``: the time that prompts show whose chat template shows it, unless ``out`` has its own already; None: now.
    Raises InputError for input that won't do, before hours of work where it can be known; CheckError where a proof fails.
    """
    source, base = open_model(config, out, recorded_clock(out) or clock)
    sets = RoleSets(config.target, config.baseline, config.keep, config.harmless, config.limit)
    for role in ("target", "baseline", "harmless", "keep"):
        for split in ("train", "val", "test"):
            sets.prompts(role, split)
    check_editable(base.folder)
    if not (out / "report.json").exists():
        foresee(config)
        if config.lm_eval:
            check_installed()
    how = way_of(config, base.whole) if not (out / "selection.json").exists() else "off"  # what was chosen is not tuned again
    tested, known = sets.test_sets(), sets.without_test()
    _check_lengths(base, config, tested, known)
    reference = open_reference(config.reference, config, [base], tested)
    record = run_record(source, sets.described(), resolved(base, config, config.positions))
    folder = open_run(out, config.model_dump(mode="json"), reference.recorded(record) if reference else record)
    kept = Kept(out / ".selection").of([folder.identity(), str(base.device), str(base.fit.dtype)])
    activations = folder.stage(
        "activations", "activations.safetensors", lambda: _activations(base, known, config, kept), save_activations, load_activations
    )
    directions = folder.stage(
        "directions", "directions.safetensors", lambda: _directions(activations, config), save_directions, load_directions
    )
    folder.stage("directions", "directions.json", lambda: quality_document(activations, directions), write_json, read_json)
    plan, selection = _selection(folder, base, known, config, activations, directions, how, kept)
    before = judge_all(respond(folder, lambda: engine_of(config, base, wanted_of(source)), tested, "base"))
    harmless = sets.sets("harmless")[0].of("test", sets.limit)
    measured = drift_base(folder, base, harmless, before[harmless.name])
    controls = random_control(folder, base, plan, sets, before)
    recovery_base(folder, reference, base, tested)
    proof = _edit(folder, base, plan, source)
    edited = Session(config, out / "checkpoint", clock=base.clock)
    engines = folder.record()["resolved"].get("engines", {})
    ask_edited = partial(edited_engine, config, edited, source, engines.get("base", {}))
    after = judge_all(respond(folder, ask_edited, tested, "edited"))
    recovery = recovery_edited(folder, reference, edited, tested, sets.roles, before, after)
    drift = drift_edited(folder, edited, harmless, measured)
    benchmarked(folder, config, {"base": base, "edited": edited})
    report = report_document(
        run=folder.record(),
        roles=sets.roles,
        base=before,
        edited=after,
        drift=drift,
        selection=selection,
        edit=edit_summary(proof),
        margin=config.margin,
        controls=controls,
        recovery=recovery,
    )
    return publish(folder, report, before, after, {name: values[0].tolist() for name, values in directions.auc.items()})


def _check_lengths(base: Session, config: RunConfig, tested: Sequence[PromptSet], known: RoleSets) -> None:
    """Raise InputError where a prompt is more than the model reads, with the reply of the final test, or with what is tried behind the
    prompts before it."""
    base.check_prompts({group.name: group for group in tested}, reply_length(config, base))
    chosen_on: dict[str, list[Prompt]] = {role: [*known.prompts(role, "train"), *known.prompts(role, "val")] for role in known.played}
    base.check_prompts(chosen_on, behind_prompts(base.tokenizer()))


def open_model(config: ModelConfig, out: Path, clock: datetime | None = None) -> tuple[ModelSource, Session]:
    """Find the model and check its config, its shards' headers and that ``out`` lies apart from it."""
    source = resolve_model(config.model, config.revision)
    session = Session(config, source.path, clock=clock)
    check_destination(out / ".new", source.path)
    return source, session


def resolved(session: Session, config: ModelConfig, positions: int | None) -> dict[str, Any]:
    """What the settings left open, as it was decided; reads the tokenizer, so a missing chat template is known early."""
    tokenizer = session.tokenizer()
    elsewhere = isinstance(config, AuditConfig) and config.engine != "transformers"
    by_a_server = isinstance(config, AuditConfig) and is_url(config.engine)
    return {
        "device": str(session.device),
        "dtype": str(pick_dtype(config.dtype, session.device) if elsewhere else session.fit.dtype).removeprefix("torch."),
        "held": "by its engine" if elsewhere else "whole" if session.fit.resident else "block by block",
        "batch_size": None if elsewhere else session.batch_size,
        "positions": positions or _last_tokens(tokenizer, config),
        "clock": session.clock.isoformat() if reads_clock(str(tokenizer.chat_template)) and not by_a_server else None,
        "threads": torch.get_num_threads(),
        "seeds": {"bootstrap": 0},
    }


def run_record(source: ModelSource | None, prompts: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json says beside the settings; nothing is known of the files of a model that is only on a server."""
    return {
        "resolved": resolved,
        "model_path": str(source.path) if source else None,
        "hub_id": source.hub_id if source else None,
        "revision": source.revision if source else None,
        "model_hashes": file_hashes(source.path) if source else None,
        "prompts": prompts,
    }


def _activations(base: Session, sets: RoleSets, config: RunConfig, kept: Kept) -> Activations:
    """Activations; the short replies that the choice rests on come of the same pass, where the model can tell both."""
    prompts = {split: {role: sets.prompts(role, split) for role in sets.played} for split in SPLITS}
    asked = [ids for each in prompts.values() for role in each for ids in encode(base.model.tokenizer, [p.text for p in each[role]])]
    probe = probe_of(base.model, asked, short(base.model.tokenizer), CONTINUED)
    activations = activations_of(probe or base.model, sets, positions_of(base.model, config))
    if probe is not None:
        for split, each in prompts.items():
            keep_heard(kept, split, each, probe)
    return activations


def activations_of(model: Watched, sets: RoleSets, positions: int) -> Activations:
    """Statistics of every role's train prompts at the last ``positions`` tokens, and the val vectors that rank the directions."""
    val = sets.played if sets.sets("keep") else ("target", "baseline")
    train = {role: sets.prompts(role, "train") for role in sets.played}
    return gathered(model, sets, train, {role: sets.prompts(role, "val") for role in val}, positions)


def gathered(
    model: Watched, sets: RoleSets, train: Mapping[Role, Sequence[Prompt]], val: Mapping[Role, Sequence[Prompt]], positions: int
) -> Activations:
    """Statistics of the ``train`` prompts by role, by language and by keep set, and the vectors of the ``val`` prompts.

    Every position of target and baseline is kept of val; of the others, which only help to scope directions, the last.
    """
    parts = by_language({role: train[role] for role in ("target", "baseline")})
    asked: dict[str, Group] = {
        role: grouped(model, prompts, parts.get(role, {}) | by_set(sets, role, prompts)) for role, prompts in train.items()
    }
    for role, prompts in val.items():
        own = {f"{part} (val)": chosen for part, chosen in by_set(sets, role, prompts).items()}
        asked[f"{role} (val)"] = grouped(model, prompts, own, positions if role in ("target", "baseline") else 1)
    found = collected(model, asked, positions)
    kept = {name.removesuffix(" (val)"): found.pop(name).vectors for name in list(found) if name.endswith(" (val)")}
    kept.pop("keep", None)  # by set
    categories = tuple(p.category or p.topic or "" for p in train["target"])
    return Activations(found, kept, tuple(range(-1, -positions - 1, -1)), sets.hashes, categories)


def by_set(sets: RoleSets, role: Role, prompts: Sequence[Prompt]) -> dict[str, list[int]]:
    """Which of the prompts are of which keep set, as ``keep/<set>``; nothing for another role."""
    if role != "keep":
        return {}
    owned = {group.name: frozenset(group.prompts) for group in sets.sets("keep")}
    return {f"{KEEP}{name}": [i for i, p in enumerate(prompts) if p in own] for name, own in owned.items()}


def by_language(prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, dict[str, list[int]]]:
    """Each role's prompts of each language that every role has, where there are several: ``target@en`` and so on."""
    counts = [Counter(p.lang for p in asked) for asked in prompts.values()]
    shared = sorted(lang for lang in counts[0] if all(count[lang] >= MIN_PER_LANGUAGE for count in counts))
    if len(shared) < 2:
        return {}
    return {
        role: {f"{role}@{lang}": [i for i, p in enumerate(asked) if p.lang == lang] for lang in shared} for role, asked in prompts.items()
    }


def positions_of(model: Watched, config: CollectConfig) -> int:
    """How many last tokens are looked at: as told, else all that the chat template appends, and with keep sets the instruction's last."""
    return config.positions or _last_tokens(model.tokenizer, config)


def _last_tokens(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> int:
    one_more = isinstance(config, CollectConfig) and bool(config.keep)
    return len(template_positions(tokenizer)) + one_more


def _directions(activations: Activations, config: RunConfig) -> Directions:
    """Every direction that is asked for. Raises CheckError where too little is left of them beside the keep sets' own."""
    directions = estimate(activations, config.estimators, config.min_share)
    for line in sentences_on_scope(directions):
        say(line)
    check_separable(directions, config.min_share)
    return directions


def grouped(model: Watched, prompts: Sequence[Prompt], parts: Mapping[str, Sequence[int]], kept: int = 1) -> Group:
    """Prompts as they are collected on."""
    return Group(encode(model.tokenizer, [p.text for p in prompts]), parts, kept)


def collected(model: Watched, groups: Mapping[str, Group], positions: int) -> dict[str, SetActivations]:
    """Activations of groups of prompts, with progress."""
    with stage("activations (prompts)", sum(len(group.prompts) for group in groups.values())) as advance:
        return collect(model, groups, positions, advance)


def _selection(
    folder: RunFolder,
    base: Session,
    sets: RoleSets,
    config: RunConfig,
    activations: Activations,
    directions: Directions,
    how: Way,
    kept: Kept,
) -> tuple[EditPlan, dict[str, Any]]:
    """The chosen plan and how it was chosen; from train and val prompts only. What is done of it is kept until all of it is."""
    file = folder.path / "selection.json"
    if not file.exists():
        with folder.timed("selection"):
            plan, document = select(base.model, sets, config, directions, how, keep_axes(activations), kept)
        save_plan(plan, folder.path / "plan.safetensors")
        write_json(document, file)
    kept.forget()
    return load_plan(folder.path / "plan.safetensors"), json.loads(file.read_text(encoding="utf-8"))


def _edit(folder: RunFolder, base: Session, plan: EditPlan, source: ModelSource) -> dict[str, Any]:
    """The edited checkpoint's proof; the checkpoint is made where it isn't there yet, without the model in memory."""
    out = folder.path / "checkpoint"
    if not (out / PROOF).is_file():
        base.release()
        with folder.timed("edit"), stage("bytes written and proven", work_of(base.folder, plan)) as advance:
            edit_checkpoint(base.folder, plan, out, source.name, lambda proof: model_card(proof, None), advance, source.revision)
    proof: dict[str, Any] = json.loads((out / PROOF).read_text(encoding="utf-8"))
    return proof


def edit_summary(proof: Mapping[str, Any]) -> dict[str, Any]:
    """What the report says of an edit."""
    return {
        "tensors": len(proof["tensors"]),
        "worst_left": proof["worst"]["left"],
        "worst_error": proof["worst"]["error"],
        "embedding": proof["embedding"],
        "not_edited": proof["not_edited"],
    }
