"""The final test of one or two models into a run folder: their replies, how far they moved, their benchmarks, and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from abliterate.checkpoint.proof import NAME as PROOF
from abliterate.checkpoint.sums import to_hash, write_sums
from abliterate.config import EvaluateConfig, Transcripts
from abliterate.evaluation.benchmarks import Harness, side_by_side
from abliterate.evaluation.drift import BaseSide, base_side, load_base_side, save_base_side, texts_of
from abliterate.evaluation.drift import drift as drift_of
from abliterate.evaluation.engine import Engine
from abliterate.evaluation.predictions import Texts
from abliterate.evaluation.random_directions import control, control_work
from abliterate.evaluation.summary import Judged
from abliterate.evaluation.summary import withheld as is_withheld
from abliterate.evaluation.transcripts import Transcript, read
from abliterate.model.plan import EditPlan
from abliterate.model.session import Session
from abliterate.model.template import encode
from abliterate.progress import stage
from abliterate.prompts import PromptSet, RoleSets
from abliterate.report.card import model_card
from abliterate.report.document import read_json, write_json, write_text
from abliterate.report.page import report_page
from abliterate.runfolder import RunFolder

CONTROLS, WEIGHTS, DIRECTIONS = "controls.json", "weights.json", "directions.json"
_DRIFT, _BASE_SIDE, _BENCHMARKS = "drift.json", "drift-base.safetensors", "benchmarks.json"


def respond(folder: RunFolder, engine: Callable[[], Engine], groups: Sequence[PromptSet], which: str) -> list[Transcript]:
    """Responses of one model to all prompts; the transcript file grows as they come and is gone on with.

    ``engine`` is called where any is missing; run.json says then what it is.
    """
    path = folder.path / "transcripts" / f"{which}.jsonl"
    path.parent.mkdir(exist_ok=True)
    done = {(t.set, t.id): t for t in read(path)}
    wanted = [(group.name, prompt.id) for group in groups for prompt in group]
    if all(key in done for key in wanted):
        return [done[key] for key in wanted]
    with folder.timed(f"transcripts ({which})"):
        asked = engine()
        folder.note_engine(which, asked.described, begun=bool(done))
        with stage(f"responses of the {which} model", len(wanted)) as advance:
            return asked.answer(groups, path, advance)


def drift_base(folder: RunFolder, base: Session, group: PromptSet, before: Judged) -> tuple[Texts, BaseSide] | None:
    """What drift is measured on and what the base says there, asked while the base is still in memory; None where drift is known.

    ``before``: its replies to the prompts of ``group``; along those that are missing nothing is measured.
    """
    if (folder.path / _DRIFT).exists():
        return None
    replies = {transcript.id: transcript.response for transcript, _ in before}
    tokenizer = base.tokenizer()
    texts = texts_of(tokenizer, encode(tokenizer, [p.text for p in group]), [replies.get(p.id, "") for p in group], base.context)

    def make() -> BaseSide:
        with stage("drift: the base's predictions", texts.work) as advance:
            return base_side(base.model, texts, advance)

    return texts, folder.stage("drift (base)", _BASE_SIDE, make, save_base_side, load_base_side)


def drift_edited(folder: RunFolder, edited: Session, group: PromptSet, measured: tuple[Texts, BaseSide] | None) -> dict[str, Any]:
    """How far the edited model moved on the harmless test prompts, the base's replies to them, and prose; ``measured`` None: it is
    known already."""

    def make() -> dict[str, Any]:
        assert measured is not None
        texts, base = measured
        with stage("drift: the edited model's predictions", texts.work) as advance:
            found = drift_of(edited.model, base, texts, advance)
        edited.release()
        return {"set": group.name, "ids": [p.id for p in group], **asdict(found)}

    found = folder.stage("drift", _DRIFT, make, write_json, read_json)
    (folder.path / _BASE_SIDE).unlink(missing_ok=True)
    return found


def random_control(folder: RunFolder, base: Session, plan: EditPlan, sets: RoleSets, before: Mapping[str, Judged]) -> dict[str, Any]:
    """What the edit does to first tokens beside edits along random directions, asked while the base is still in memory.

    ``before``: its replies to the test prompts by set; of the target sets those that it withholds are looked at.
    """

    def make() -> dict[str, Any]:
        tokenizer = base.tokenizer()
        names = [group.name for group in sets.sets("target")]
        judged = [reply for name in names for reply in before[name]]
        withheld = encode(tokenizer, [transcript.prompt for transcript, verdict in judged if is_withheld(verdict)])
        plain = encode(tokenizer, [prompt.text for prompt in sets.prompts("harmless", "test")])
        with stage("random directions (prompts)", control_work(withheld, plain)) as advance:
            return control(base.model, plan, names, len(judged), withheld, plain, advance)

    return folder.stage("random directions", CONTROLS, make, write_json, read_json)


def benchmarked(folder: RunFolder, config: EvaluateConfig, sides: Mapping[str, Session]) -> None:
    """Score the models in lm-eval's tasks, where any are asked for, into the run folder."""
    if not config.lm_eval:
        return
    scores = {}
    for which, session in sides.items():
        harness = Harness(config.lm_eval, *_loading(session))
        file = f"benchmarks-{which}.json"
        session.release()
        scores[which] = folder.stage(f"lm-eval ({which})", file, partial(harness.measure, session.folder.path), write_json, read_json)
    if not (folder.path / _BENCHMARKS).exists():
        write_json(side_by_side(config.lm_eval, scores["base"], scores.get("edited")), folder.path / _BENCHMARKS)


def _loading(session: Session) -> tuple[str, str, bool]:
    """What lm-eval loads a model with."""
    return str(session.fit.dtype).removeprefix("torch."), str(session.device), session.folder.trust_remote_code


def publish(
    folder: RunFolder,
    report: Mapping[str, Any],
    before: Mapping[str, Judged],
    after: Mapping[str, Judged] | None,
    auc: Mapping[str, Sequence[float]] | None,
    transcripts: Transcripts | None = None,
) -> dict[str, Any]:
    """Write report.json, report.html and the derived checkpoint's card. Returns the report with its cost.

    Where the folder holds what differs between two models' weights, their scores in benchmarks, or how good the directions are, these
    go into the report. ``transcripts``: how much of each reply the page shows; None as the run was told.
    """
    weights, scores, directions = (folder.path / name for name in (WEIGHTS, _BENCHMARKS, DIRECTIONS))
    more = {"weights": read_json(weights)["summary"]} if weights.is_file() else {}
    more |= {"directions": read_json(directions)} if directions.is_file() else {}
    if scores.is_file():
        more |= {"benchmarks": read_json(scores), "not_measured": [name for name in report["not_measured"] if name != "benchmarks"]}
    whole = {**report, **more, "cost": folder.cost()}
    write_json(whole, folder.path / "report.json")
    shown = transcripts or folder.record()["settings"].get("transcripts", "excerpt")
    write_text(report_page(whole, before, after, auc, shown), folder.path / "report.html")
    card = folder.path / "checkpoint" / "README.md"
    if card.is_file():
        proof = read_json(card.parent / PROOF)
        write_text(model_card(proof, whole), card)
        with stage("bytes hashed (SHA256SUMS)", to_hash(card.parent)) as advance:
            write_sums(card.parent, advance)
    return whole
