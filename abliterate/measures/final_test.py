"""The parts of the final test besides replies, with their files in the run folder: drift, random directions, benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from abliterate.compute.session import Session
from abliterate.config import EvaluateConfig
from abliterate.files import read_json, write_json
from abliterate.measures.benchmarks import Harness, side_by_side
from abliterate.measures.drift import BasePredictions, base_predictions, load_base_predictions, save_base_predictions, texts_of
from abliterate.measures.drift import drift as drift_of
from abliterate.measures.parts.moved import Controls, DriftValues
from abliterate.measures.predictions import Texts
from abliterate.measures.random_directions import control, control_work
from abliterate.measures.summary import Judged
from abliterate.measures.summary import withheld as is_withheld
from abliterate.model.chat.template import encode
from abliterate.model.edit import Edit
from abliterate.prompts import PromptSet, RoleSets
from abliterate.runs.folder import BENCHMARKS, CONTROLS, DRIFT, RunFolder
from abliterate.terminal.progress import stage

_BASE_SIDE = "drift-base.safetensors"


def drift_base(folder: RunFolder, base: Session, group: PromptSet, before: Judged) -> tuple[Texts, BasePredictions] | None:
    """The texts that drift is measured on, and the base's predictions on them, while the base is still in memory. None if drift is already
    measured.

    ``before``: the base's replies to the prompts of ``group``. Nothing is measured along replies that are missing.
    """
    if (folder.path / DRIFT).exists():
        return None
    replies = {transcript.id: transcript.response for transcript, _ in before}
    tokenizer = base.tokenizer()
    texts = texts_of(tokenizer, encode(tokenizer, [p.text for p in group]), [replies.get(p.id, "") for p in group], base.context)

    def make() -> BasePredictions:
        with stage("drift: the base's predictions", texts.work) as advance:
            return base_predictions(base.model, texts, advance)

    return texts, folder.stage("drift (base)", _BASE_SIDE, make, save_base_predictions, load_base_predictions)


def drift_edited(folder: RunFolder, edited: Session, group: PromptSet, measured: tuple[Texts, BasePredictions] | None) -> DriftValues:
    """The drift of the edited model on the harmless test prompts, the base's replies to them, and prose. ``measured``: from ``drift_base``;
    None if drift is already measured."""

    def make() -> DriftValues:
        assert measured is not None
        texts, base = measured
        with stage("drift: the edited model's predictions", texts.work) as advance:
            found = drift_of(edited.model, base, texts, advance)
        edited.release()
        return found.of(group.name, [p.id for p in group])

    found = folder.stage("drift", DRIFT, make, write_json, DriftValues.read)
    (folder.path / _BASE_SIDE).unlink(missing_ok=True)
    return found


def random_control(folder: RunFolder, base: Session, edit: Edit, sets: RoleSets, before: Mapping[str, Judged]) -> Controls:
    """The effect of the edit on first tokens, compared with edits along random directions, while the base is still in memory.

    ``before``: the base's replies to the test prompts, by set. Of the target sets, only prompts that the base withholds are used.
    """

    def make() -> Controls:
        tokenizer = base.tokenizer()
        names = [group.name for group in sets.sets("target")]
        judged = [reply for name in names for reply in before[name]]
        withheld = encode(tokenizer, [transcript.prompt for transcript, verdict in judged if is_withheld(verdict)])
        plain = encode(tokenizer, [prompt.text for prompt in sets.prompts("harmless", "test")])
        with stage("random directions (prompts)", control_work(withheld, plain)) as advance:
            return control(base.model, edit, names, len(judged), withheld, plain, advance)

    return folder.stage("random directions", CONTROLS, make, write_json, Controls.read)


def benchmarked(folder: RunFolder, config: EvaluateConfig, sides: Mapping[str, Session]) -> None:
    """Score the models on lm-eval's tasks, if any are requested, and write the scores to the run folder."""
    if not config.lm_eval:
        return
    scores = {}
    for which, session in sides.items():
        harness = Harness(config.lm_eval, *_loading(session))
        file = f"benchmarks-{which}.json"
        session.release()
        scores[which] = folder.stage(f"lm-eval ({which})", file, partial(harness.measure, session.folder.path), write_json, read_json)
    if not (folder.path / BENCHMARKS).exists():
        write_json(side_by_side(config.lm_eval, scores["base"], scores.get("edited")), folder.path / BENCHMARKS)


def _loading(session: Session) -> tuple[str, str, bool]:
    """The dtype, device and trust_remote_code with which lm-eval loads a model."""
    return str(session.holding.dtype).removeprefix("torch."), str(session.device), session.folder.trust_remote_code
