"""The whole pipeline: prompts > activations > directions > selection > edit > evaluation > report.

Each stage's result is a file in the run folder, so a killed run resumes after the last finished stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from abliterate.checkpoint.edit import check_editable, edit_checkpoint, work_of
from abliterate.checkpoint.names import PROOF
from abliterate.checkpoint.records import Proof
from abliterate.choice.method import TuningMethod, settled_method
from abliterate.choice.own_examples import prompts_of
from abliterate.choice.records import Selection
from abliterate.choice.select import select
from abliterate.choice.tuning.examples import CONTINUED, most_tokens_after_prompts
from abliterate.choice.tuning.probe import probe_of
from abliterate.choice.tuning.probed import save_heard
from abliterate.choice.tuning.replies import short
from abliterate.compute.session import Session
from abliterate.config import RunConfig
from abliterate.directions.activations import Activations, load_activations, save_activations
from abliterate.directions.document import DirectionsQuality
from abliterate.directions.estimate import Directions, check_separable, estimate, keep_axes
from abliterate.directions.file import load_directions, save_directions
from abliterate.directions.groups import activations_of, positions_of
from abliterate.directions.quality import quality_document, sentences_on_scope
from abliterate.files import write_json
from abliterate.measures.benchmarks import check_installed
from abliterate.measures.consistency.consistency import Replies, checked
from abliterate.measures.final_test import benchmarked, drift_base, drift_edited, random_control
from abliterate.measures.reference import open_reference, recovery_base, recovery_edited
from abliterate.measures.summary import judge_all
from abliterate.model.chat.template import encode
from abliterate.model.edit import Edit, load_edit, save_edit
from abliterate.model.source import ModelSource
from abliterate.prompts import Prompt, PromptSet, RoleSets
from abliterate.prompts.promptset import Split
from abliterate.replies.engine import edited_engine, engine_of, foresee, reply_length, wanted_of
from abliterate.replies.responding import respond
from abliterate.replies.samples import check_facts, sampling_of
from abliterate.report.card import model_card
from abliterate.report.document import report_document
from abliterate.report.tree.report import Report
from abliterate.report.write import write_report
from abliterate.runs.folder import DIRECTIONS, RunFolder, open_run, recorded_clock
from abliterate.runs.record import open_model, resolved, run_record
from abliterate.runs.resume import ResumeStore
from abliterate.terminal.progress import say, stage

SPLITS: tuple[Split, ...] = ("train", "val")  # the splits that are used before the final test


def run(config: RunConfig, out: Path, clock: datetime | None = None) -> Report:
    """Run the whole pipeline into the folder ``out``; the same call again resumes. Returns the report.

    ``clock``: the time for chat templates that show one, unless ``out`` has recorded one already; None: now.
    Raises InputError for input that can't be used, before hours of work if possible; CheckError if a proof fails.
    """
    source, base = open_model(config, out, recorded_clock(out) or clock)
    sets = RoleSets(config.target, config.baseline, config.keep, config.harmless, config.limit)
    sets.check_splits()
    check_editable(base.folder)
    if not (out / "report.json").exists():
        foresee(config)
        if config.lm_eval:
            check_installed()
    how = settled_method(config, base.whole) if not (out / "selection.json").exists() else "off"  # a chosen edit is not tuned again
    tested, known = sets.test_sets(), sets.without_test()
    _check_lengths(base, config, tested, known)
    sampling = sampling_of(config)
    check_facts(config, tested)
    reference = open_reference(config.reference, config, [base], tested)
    record = run_record("run", config, source, sets.described(), resolved(base, config, config.positions))
    folder = open_run(out, reference.recorded(record) if reference else record)
    store = ResumeStore(out / ".selection").of([folder.identity(), str(base.device), str(base.holding.dtype)])
    activations = folder.stage(
        "activations", "activations.safetensors", lambda: _activations(base, known, config, store), save_activations, load_activations
    )
    directions = folder.stage(
        "directions", "directions.safetensors", lambda: _directions(activations, config), save_directions, load_directions
    )
    folder.stage("directions", DIRECTIONS, lambda: quality_document(activations, directions), write_json, DirectionsQuality.read)
    edit, selection = _selection(folder, base, known, config, activations, directions, how, store)
    proof = _edit(folder, base, edit, source)  # before the final test, which takes longer than all before it
    by_base = respond(folder, lambda: engine_of(config, base, wanted_of(source)), tested, "base", sampling)
    before = judge_all(by_base)
    harmless = sets.sets("harmless")[0].of("test", sets.limit)
    measured = drift_base(folder, base, harmless, before[harmless.name])
    controls = random_control(folder, base, edit, sets, before)
    recovery_base(folder, reference, base, tested)
    base.release()  # one model is in memory at a time
    edited = Session(config, out / "checkpoint", clock=base.clock)
    ask_edited = partial(edited_engine, config, edited, source, folder.record().resolved.engine("base"))
    by_edited = respond(folder, ask_edited, tested, "edited", sampling)
    after = judge_all(by_edited)
    recovery = recovery_edited(folder, reference, edited, tested, sets.roles, before, after)
    drift = drift_edited(folder, edited, harmless, measured)
    benchmarked(folder, config, {"base": base, "edited": edited})
    found = checked(sampling, sets.roles, Replies.of(before, by_base), Replies.of(after, by_edited))
    report = report_document(
        run=folder.record(),
        roles=sets.roles,
        base=found.base,
        edited=found.edited,
        drift=drift,
        selection=selection,
        edit=proof.summary,
        margin=config.margin,
        controls=controls,
        recovery=recovery,
        consistency=found.consistency,
    )
    return write_report(folder, report, found.base, found.edited, {name: values[0].tolist() for name, values in directions.auc.items()})


def _check_lengths(base: Session, config: RunConfig, tested: Sequence[PromptSet], known: RoleSets) -> None:
    """Raise InputError if a prompt is too long for the model: a test prompt with its reply, or a train or val prompt with the tokens that
    the choice appends."""
    base.check_prompts({group.name: group for group in tested}, reply_length(config, base))
    chosen_on: dict[str, list[Prompt]] = {role: [*known.prompts(role, "train"), *known.prompts(role, "val")] for role in known.played}
    base.check_prompts(chosen_on, most_tokens_after_prompts(base.tokenizer()))


def _activations(base: Session, sets: RoleSets, config: RunConfig, store: ResumeStore) -> Activations:
    """Collect activations. If the model supports it, the short replies that the choice needs come from the same pass."""
    prompts = {split: prompts_of(sets, split) for split in SPLITS}
    asked = [ids for each in prompts.values() for role in each for ids in encode(base.model.tokenizer, [p.text for p in each[role]])]
    probe = probe_of(base.model, asked, short(base.model.tokenizer), CONTINUED)
    activations = activations_of(probe or base.model, sets, positions_of(base.model, config))
    if probe is not None:
        for split, each in prompts.items():
            save_heard(store, split, each, probe)
    return activations


def _directions(activations: Activations, config: RunConfig) -> Directions:
    """Estimate the directions. Raises CheckError if removing the keep sets' own directions leaves too little of them."""
    directions = estimate(activations, config.estimators, config.min_share)
    for line in sentences_on_scope(directions):
        say(line)
    check_separable(directions, config.min_share)
    return directions


def _selection(
    folder: RunFolder,
    base: Session,
    sets: RoleSets,
    config: RunConfig,
    activations: Activations,
    directions: Directions,
    how: TuningMethod,
    store: ResumeStore,
) -> tuple[Edit, Selection]:
    """The chosen edit and how it was chosen, from train and val prompts only. Intermediate results are kept until it is complete."""
    file, plan = folder.path / "selection.json", folder.path / "plan.safetensors"
    if not file.exists():
        with folder.timed("selection"):
            edit, selection = select(base.model, sets, config, directions, how, keep_axes(activations), store)
        save_edit(edit, plan)
        write_json(selection, file)
    store.forget()
    return load_edit(plan), Selection.read(file)  # what a resumed run has, to the last bit


def _edit(folder: RunFolder, base: Session, edit: Edit, source: ModelSource) -> Proof:
    """The edited checkpoint's proof. Writes the checkpoint if it does not exist yet, without the model in memory."""
    out = folder.path / "checkpoint"
    if not (out / PROOF).is_file():
        base.release()
        with folder.timed("edit"), stage("bytes written and proven", work_of(base.folder, edit)) as advance:
            edit_checkpoint(base.folder, edit, out, source.name, lambda proof: model_card(proof, None), advance, source.revision)
    return Proof.read(out / PROOF)
