"""The only caller of stages: prompts > activations > directions > selection > edit > evaluation > report.

Each stage's result is a file in the run folder, so a run that is killed goes on from the last finished stage.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from abliterate.activations.collect import SetActivations, collect
from abliterate.activations.file import Activations, load_activations, save_activations
from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.checkpoint.index import open_index
from abliterate.checkpoint.proof import NAME as PROOF
from abliterate.checkpoint.tasks import edit_tasks
from abliterate.checkpoint.write import check_destination
from abliterate.config import CollectConfig, ContrastConfig, ModelConfig, RunConfig
from abliterate.directions.candidates import Candidate, Directions, candidates, estimate
from abliterate.directions.causal import score, yardstick
from abliterate.directions.file import load_directions, save_directions
from abliterate.directions.select import Choice, choose
from abliterate.errors import InputError
from abliterate.evaluation.drift import kl_divergence
from abliterate.evaluation.generate import generate, reply_ids
from abliterate.evaluation.outcomes import WITHHELD, judge
from abliterate.evaluation.summary import judge_all
from abliterate.evaluation.transcripts import Transcript
from abliterate.model.folder import ModelFolder, open_folder
from abliterate.model.forward import batches, first_token_logprobs
from abliterate.model.load import LocalModel, load_model
from abliterate.model.plan import EditPlan, load_plan, save_plan
from abliterate.model.source import ModelSource, resolve_model
from abliterate.model.template import decode, encode, opens_thought, template_positions
from abliterate.progress import say, stage
from abliterate.prompts import Prompt, PromptSet, load_set
from abliterate.prompts.promptset import Split
from abliterate.prompts.read import TWINS
from abliterate.prompts.split import check_contrast, check_disjoint
from abliterate.report.card import model_card
from abliterate.report.document import report_document, write_json, write_text
from abliterate.report.page import report_page
from abliterate.runfolder import RunFolder, file_hashes, open_run

OPENING_TOKENS = 8
PROBE_TOKENS = 24


class Session:
    """A model of a run: its folder's facts at once, its weights on first use."""

    def __init__(self, config: ModelConfig, path: Path) -> None:
        self._config = config
        self.folder: ModelFolder = open_folder(path, config.trust_remote_code)

    @cached_property
    def model(self) -> LocalModel:
        config = self._config
        return load_model(self.folder.path, config.dtype, config.device, config.trust_remote_code)

    def release(self) -> None:
        """Free the weights; they come back on the next use."""
        self.__dict__.pop("model", None)


class Sets:
    """The prompt sets of a run by role, each split limited."""

    def __init__(self, config: ContrastConfig, keep: Sequence[str] = (), harmless: str | None = None) -> None:
        self.limit = config.limit
        self.target = tuple(load_set(s) for s in config.target)
        self.baseline = tuple(load_set(s) for s in config.baseline or default_baseline(config.target))
        self.keep = tuple(load_set(s) for s in keep)
        ordinary = [] if harmless is None else [load_set(harmless)]
        named = {group.name: group for group in (*self.target, *self.baseline, *self.keep)}
        self.harmless = tuple(named.get(group.name, group) for group in ordinary)
        check_contrast(self.target, self.baseline)
        check_disjoint(self.all)
        self._check_names()

    @property
    def all(self) -> list[PromptSet]:
        """Every set once, in the order of the report."""
        return list({id(s): s for s in (*self.target, *self.baseline, *self.keep, *self.harmless)}.values())

    @property
    def roles(self) -> dict[str, str]:
        roles: dict[str, str] = {}
        for role in ("target", "baseline", "keep", "harmless"):
            for group in getattr(self, role):
                roles.setdefault(group.name, role)
        return roles

    def of(self, role: str, split: Split) -> list[Prompt]:
        """The prompts of a role in a split, all its sets together. Raises InputError where there are none."""
        limit = self.limit if split != "val" or self.limit is None else math.ceil(self.limit / 3)
        groups: tuple[PromptSet, ...] = getattr(self, role)
        prompts = [p for group in groups for p in group.of(split, limit)]
        if groups and not prompts:
            raise InputError(f"{', '.join(g.name for g in groups)}: no prompts in the split {split!r}; every set needs train, val and test")
        return prompts

    def test_sets(self) -> list[PromptSet]:
        return [group.of("test", self.limit) for group in self.all]

    def described(self) -> dict[str, Any]:
        roles = self.roles
        return {g.name: {"role": roles[g.name], "sha256": g.sha256, "n": len(g)} for g in self.all}

    def _check_names(self) -> None:
        names = [g.name for g in (*self.target, *self.baseline, *self.keep)]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise InputError(
                f"the set {twice[0]!r} is given twice (as target, baseline or keep); give each set once, under its own file name"
            )


def default_baseline(target: Sequence[str]) -> tuple[str, ...]:
    """The twin sets of bundled targets; harmless for any other."""
    return tuple(dict.fromkeys(TWINS.get(name, "harmless") for name in target))


def run(config: RunConfig, out: Path) -> dict[str, Any]:
    """The whole pipeline into the folder ``out``; the same call again goes on where it stopped. Returns the report."""
    source = resolve_model(config.model, config.revision)
    base = Session(config, source.path)
    index = open_index(source.path)
    check_destination_of_run(out, source.path)
    sets = Sets(config, config.keep, config.harmless)
    for role in ("target", "baseline", "harmless"):
        for split in ("train", "val", "test"):
            sets.of(role, split)
    layers, width = base.folder.layers, base.folder.d_model
    edit_tasks(index, base.folder, _whole_plan(layers, width))  # what can't be edited is said before hours of work
    folder = open_run(out, config.model_dump(mode="json"), run_record(source, sets))
    activations = folder.stage(
        "activations",
        "activations.safetensors",
        lambda: _activations(base, sets, config),
        save_activations,
        load_activations,
    )
    directions = folder.stage("directions", "directions.safetensors", lambda: estimate(activations), save_directions, load_directions)
    plan, selection = _selection(folder, base, sets, config, directions)
    before = _transcripts(folder, base, sets, config, "base")
    proof = _edit(folder, base, plan, source, config)
    edited = Session(config, out / "checkpoint")
    after = _transcripts(folder, edited, sets, config, "edited")
    drift = _drift(folder, base, edited, sets, config)
    report = report_document(
        run=json.loads((out / "run.json").read_text(encoding="utf-8")),
        roles=sets.roles,
        base=judge_all(before),
        edited=judge_all(after),
        drift=drift,
        selection=selection,
        edit=_edit_summary(proof),
        margin=config.margin,
    )
    return publish(folder, report, before, after, separation(directions))


def check_destination_of_run(out: Path, source: Path) -> None:
    """Raises InputError where the run folder would lie inside the model's folder or around it."""
    check_destination(out / "checkpoint" if not (out / "checkpoint").exists() else out / ".new", source)


def _whole_plan(layers: int, width: int) -> EditPlan:
    import torch

    return EditPlan(torch.eye(1, width).expand(layers, 2, 1, width), torch.ones(layers, 2), "skip")


def run_record(source: ModelSource, sets: Sets) -> dict[str, Any]:
    """What run.json says beside the settings."""
    return {
        "model_path": str(source.path),
        "hub_id": source.hub_id,
        "revision": source.revision,
        "model_hashes": file_hashes(source.path),
        "prompts": sets.described(),
        "roles": sets.roles,
    }


def collect_sets(
    base: Session, sets: Sets, config: CollectConfig, roles: Sequence[str]
) -> tuple[dict[str, SetActivations], tuple[int, ...]]:
    """Activations of the train prompts of each role that has sets."""
    model = base.model
    positions = config.positions or len(template_positions(model.tokenizer))
    found: dict[str, SetActivations] = {}
    for role in roles:
        prompts = sets.of(role, "train")
        if prompts:
            found[role] = _collect(model, prompts, positions, config.batch_size, f"activations of {role} (train)")
    return found, tuple(range(-1, -positions - 1, -1))


def _collect(model: LocalModel, prompts: Sequence[Prompt], positions: int, batch_size: int, what: str) -> SetActivations:
    encoded = encode(model.tokenizer, [p.text for p in prompts])
    shortest = min(map(len, encoded))
    if shortest < positions:
        raise InputError(f"--positions {positions}: the shortest prompt has only {shortest} tokens")
    with stage(what, len(encoded)) as advance:
        return collect(model, encoded, positions, batch_size, advance)


def _activations(base: Session, sets: Sets, config: RunConfig) -> Activations:
    train, positions = collect_sets(base, sets, config, ("target", "baseline", "harmless", "keep"))
    val = {
        role: _collect(base.model, sets.of(role, "val"), len(positions), config.batch_size, f"activations of {role} (val)").vectors
        for role in ("target", "baseline")
    }
    return Activations(train, val, positions, {g.name: g.sha256 for g in sets.all})


def _selection(folder: RunFolder, base: Session, sets: Sets, config: RunConfig, directions: Directions) -> tuple[EditPlan, dict[str, Any]]:
    """The chosen plan and how it was chosen; val prompts only."""
    file = folder.path / "selection.json"
    if not file.exists():
        with folder.timed("selection"):
            plan, document = _select(base, sets, config, directions)
        save_plan(plan, folder.path / "plan.safetensors")
        write_json(document, file)
    return load_plan(folder.path / "plan.safetensors"), json.loads(file.read_text(encoding="utf-8"))


def _select(base: Session, sets: Sets, config: RunConfig, directions: Directions) -> tuple[EditPlan, dict[str, Any]]:
    model = base.model
    tried = candidates(directions, config.candidates, config.max_layer, config.embedding, base.folder.tied)
    target, openings, withheld = _openings(model, sets.of("target", "val"), config.batch_size)
    ids = {role: encode(model.tokenizer, [p.text for p in sets.of(role, "val")]) for role in ("baseline", "harmless")}
    by = yardstick(model, target, openings, ids["baseline"], ids["harmless"], config.batch_size)
    scored = []
    with stage("candidates scored by cause", len(tried)) as advance:
        for candidate in tried:
            scored.append((candidate, score(model, candidate, by, config.batch_size)))
            advance(1)
    choice = choose(scored, config.max_kl)
    notes = () if withheld else ("the model withholds none of the val prompts: its openings on all of them are the yardstick",)
    chosen = scored[choice.chosen][0]
    say(f"chosen: {chosen.name}" + "".join(f"; relaxed: {r}" for r in (*notes, *choice.relaxed)))
    document = _selection_document(scored, choice, config, notes)
    document["yardstick"] = {
        "target_val": len(sets.of("target", "val")),
        "withheld_by_base": withheld,
        "base_logprob": float(by.base_openings.mean()),
    }
    return _scaled(chosen.plan, config.strength), document


def _scaled(plan: EditPlan, strength: float) -> EditPlan:
    return EditPlan(plan.direction, plan.strength * strength, plan.embedding)


def _openings(model: LocalModel, prompts: Sequence[Prompt], batch_size: int) -> tuple[list[list[int]], list[list[int]], int]:
    """Prompts that the model withholds, how it begins to on each, and their number; all prompts where it withholds none."""
    encoded = encode(model.tokenizer, [p.text for p in prompts])
    opened = opens_thought(model.tokenizer)
    replies: list[list[int]] = [[] for _ in prompts]
    with stage("the model's own replies (val)", len(prompts)) as advance:
        for batch in batches(encoded, model.tokenizer.pad_token_id, batch_size, model.device):
            for i, reply in zip(batch.indices, reply_ids(model, batch, PROBE_TOKENS), strict=True):
                replies[i] = reply or [model.tokenizer.eos_token_id]
            advance(len(batch.indices))
    texts = [decode(model.tokenizer, reply) for reply in replies]
    withheld = [i for i, text in enumerate(texts) if judge(text, begins_in_thought=opened).outcome in WITHHELD]
    chosen = withheld or range(len(prompts))
    return [encoded[i] for i in chosen], [replies[i][:OPENING_TOKENS] for i in chosen], len(withheld)


def _selection_document(scored: Sequence[tuple[Candidate, Any]], choice: Choice, config: RunConfig, notes: Sequence[str]) -> dict[str, Any]:
    rows = [
        {
            "name": c.name,
            "kind": c.kind,
            "estimator": c.estimator,
            "position": c.position,
            "layer": c.layer,
            **s.as_dict(),
        }
        for c, s in scored
    ]
    return {
        "chosen": rows[choice.chosen],
        "filters": {
            "max_kl": config.max_kl,
            "max_kl_in_force": choice.max_kl,
            "max_layer": config.max_layer,
            "induce": "> 0",
        },
        "relaxed": [*notes, *choice.relaxed],
        "strength": config.strength,
        "candidates": rows,
    }


def _transcripts(folder: RunFolder, session: Session, sets: Sets, config: RunConfig, which: str) -> list[Transcript]:
    """Responses to the test prompts; the file grows batch by batch and is gone on with."""
    path = folder.path / "transcripts" / f"{which}.jsonl"
    path.parent.mkdir(exist_ok=True)
    return respond(folder, session, sets.test_sets(), path, config.max_new_tokens, config.batch_size, which)


def respond(
    folder: RunFolder,
    session: Session,
    groups: Sequence[PromptSet],
    path: Path,
    max_new_tokens: int,
    batch_size: int,
    which: str,
) -> list[Transcript]:
    """All responses of one model, from the file where they are complete there."""
    from abliterate.evaluation.transcripts import read

    total = sum(map(len, groups))
    done = {(t.set, t.id): t for t in read(path)}
    wanted = [(group.name, prompt.id) for group in groups for prompt in group]
    if all(key in done for key in wanted):
        return [done[key] for key in wanted]
    with folder.timed(f"transcripts ({which})"), stage(f"responses of the {which} model", total) as advance:
        return generate(session.model, groups, path, max_new_tokens, batch_size, advance)


def _edit(folder: RunFolder, base: Session, plan: EditPlan, source: ModelSource, config: RunConfig) -> dict[str, Any]:
    out = folder.path / "checkpoint"
    if not (out / PROOF).is_file():
        base.release()
        with folder.timed("edit"), stage("bytes written", open_index(base.folder.path).nbytes) as advance:
            edit_checkpoint(base.folder, plan, out, source.hub_id or source.given, lambda proof: model_card(proof, None), advance)
    proof: dict[str, Any] = json.loads((out / PROOF).read_text(encoding="utf-8"))
    return proof


def _edit_summary(proof: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tensors": len(proof["tensors"]),
        "worst_left": proof["worst"]["left"],
        "worst_error": proof["worst"]["error"],
        "embedding": proof["embedding"],
        "not_edited": proof["not_edited"],
    }


def _drift(folder: RunFolder, base: Session, edited: Session, sets: Sets, config: RunConfig) -> dict[str, Any]:
    """First-token KL on the harmless test prompts; the two models are never in memory together."""
    group = sets.harmless[0].of("test", sets.limit)

    def first(session: Session, which: str) -> Tensor:
        encoded = encode(session.model.tokenizer, [p.text for p in group])
        with stage(f"first tokens of the {which} model", len(encoded)):
            logprobs = first_token_logprobs(session.model, encoded, config.batch_size)
        session.release()
        return logprobs

    def make() -> dict[str, Any]:
        after = first(edited, "edited")
        kl = kl_divergence(first(base, "base"), after)
        return {"set": group.name, "ids": [p.id for p in group], "kl_first_token": kl.tolist()}

    return folder.stage("drift", "drift.json", make, write_json, lambda path: dict(json.loads(path.read_text())))


def separation(directions: Directions) -> dict[str, Any]:
    """AUC on val by layer at the last position, for the page."""
    return {name: values[0].tolist() for name, values in directions.auc.items()}


def publish(
    folder: RunFolder,
    report: dict[str, Any],
    before: Sequence[Transcript],
    after: Sequence[Transcript] | None,
    auc: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Write report.json, report.html and the derived checkpoint's card."""
    report = {**report, "cost": folder.cost()}
    write_json(report, folder.path / "report.json")
    judged = judge_all(before), (judge_all(after) if after is not None else None)
    write_text(report_page(report, *judged, auc), folder.path / "report.html")
    card = folder.path / "checkpoint" / "README.md"
    if card.is_file():
        proof = json.loads((card.parent / PROOF).read_text(encoding="utf-8"))
        write_text(model_card(proof, report), card)
    return report
