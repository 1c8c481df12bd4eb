"""The reference of a final test (a model whose behaviour without the censorship is known), and the recovery measured against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from abliterate.compute.session import Session
from abliterate.config import AuditConfig, RunConfig
from abliterate.files import write_json
from abliterate.measures.parts.moved import Distance, Recovery
from abliterate.measures.predictions import Predicted, Texts
from abliterate.measures.recovery import (
    AGREED,
    TOKENS,
    Divergence,
    RecoverySide,
    check_predicts_alike,
    divergences,
    ids_of,
    load_predicted,
    recovered,
    reference_side,
    save_predicted,
)
from abliterate.measures.summary import Judged, figures, judge_all
from abliterate.model.chat.template import encode
from abliterate.model.source import ModelSource, resolve_model
from abliterate.prompts import PromptSet
from abliterate.replies.engine import Engine
from abliterate.replies.generate import generate
from abliterate.replies.responding import respond
from abliterate.replies.transcripts import Transcript
from abliterate.runs.document import EngineRecord, ModelPlace, RunRecord
from abliterate.runs.folder import RECOVERY, RunFolder, file_hashes
from abliterate.terminal.progress import stage

_REFERENCE_SIDE, _RECOVERY_BASE = "recovery-reference.safetensors", "recovery-base.json"


@dataclass(frozen=True)
class Reference:
    """A model whose behaviour without the censorship is known. ``settle``: end its replies early, as for the other models. ``agreed``: how
    many first tokens of replies are compared."""

    source: ModelSource
    session: Session
    settle: bool
    agreed: int

    def recorded(self, record: RunRecord) -> RunRecord:
        """The record of run.json, with the identity and file hashes of the reference added."""
        hashes = {f"reference/{name}": digest for name, digest in file_hashes(self.source.path).items()}
        found = ModelPlace(model_path=str(self.source.path), hub_id=self.source.hub_id, revision=self.source.revision)
        return record.model_copy(update={"model_hashes": {**(record.model_hashes or {}), **hashes}, "reference": found})


def open_reference(
    given: str | None, config: RunConfig | AuditConfig, others: Sequence[Session], groups: Sequence[PromptSet]
) -> Reference | None:
    """Open the reference; None if none is requested. Raises InputError unless it has the same vocabulary as the ``others`` and encodes all
    prompts to the same ids."""
    if given is None:
        return None
    source = resolve_model(given)
    session = Session(config, source.path, clock=others[0].clock)
    for other in others:
        sizes = (int(session.folder.config.vocab_size), int(other.folder.config.vocab_size))
        check_predicts_alike(given, session.tokenizer(), other.tokenizer(), sizes, [p.text for group in groups for p in group])
    for one in (session, *others):
        one.check_prompts({group.name: group for group in groups}, TOKENS)
    agreed = min(AGREED, config.max_new_tokens, *(one.longest for one in (session, *others) if one.longest is not None))
    return Reference(source, session, config.settle, agreed)


def recovery_base(folder: RunFolder, reference: Reference | None, base: Session, groups: Sequence[PromptSet]) -> None:
    """Measure the reference's own replies, its predictions along them, and the KL of the base from these. One model is in memory at a
    time."""
    if reference is None or (folder.path / RECOVERY).exists():
        return
    texts = _texts(reference, _replies_of(folder, reference, base, groups))

    def predict() -> Predicted:
        base.release()
        with stage("recovery: the reference's predictions", len(texts.prompts)) as advance:
            return reference_side(reference.session.model, texts, advance)

    told = folder.stage("recovery (reference)", _REFERENCE_SIDE, predict, save_predicted, load_predicted)
    reference.session.release()
    folder.stage("recovery (base)", _RECOVERY_BASE, lambda: _divergence("base", base, told, texts), write_json, Divergence.read)


def recovery_edited(
    folder: RunFolder,
    reference: Reference | None,
    edited: Session,
    groups: Sequence[PromptSet],
    roles: Mapping[str, str],
    before: Mapping[str, Judged],
    after: Mapping[str, Judged],
) -> Recovery | None:
    """The recovery by set: the base as measured by ``recovery_base``, and the edited model. None without a reference."""
    if reference is None:
        return None

    def make() -> Recovery:
        replies = _replies_of(folder, reference, edited, groups)
        texts, own = _texts(reference, replies), judge_all(replies)
        reference.session.release()
        found = _divergence("edited", edited, load_predicted(folder.path / _REFERENCE_SIDE), texts)
        measured = (Divergence.read(folder.path / _RECOVERY_BASE), found)
        tokenizer, sets, start = edited.tokenizer(), dict[str, Distance](), 0
        for group in groups:
            place = slice(start, start := start + len(group))
            base_side, edited_side = (
                RecoverySide(values.kl[place], values.first[place], ids_of(tokenizer, [t.response for t, _ in judged[group.name]]))
                for values, judged in zip(measured, (before, after), strict=True)
            )
            entry = recovered(roles[group.name], texts.replies[place], base_side, edited_side, reference.agreed)
            sets[group.name] = entry.model_copy(update={"degenerate_reference": figures(own[group.name]).degenerate})
        return Recovery(reference=reference.source.name, agree_tokens=reference.agreed, sets=sets)

    found = folder.stage("recovery", RECOVERY, make, write_json, Recovery.read)
    for file in (_REFERENCE_SIDE, _RECOVERY_BASE):
        (folder.path / file).unlink(missing_ok=True)
    return found


def _replies_of(folder: RunFolder, reference: Reference, held: Session, groups: Sequence[PromptSet]) -> list[Transcript]:
    """The reference's own replies to all prompts. ``held`` is released if any reply must still be generated."""

    def engine() -> Engine:
        held.release()
        model = reference.session.model
        return Engine(
            EngineRecord(kind="transformers"), lambda sets, path, advance: generate(model, sets, path, TOKENS, advance, reference.settle)
        )

    return respond(folder, engine, groups, "reference")


def _texts(reference: Reference, replies: Sequence[Transcript]) -> Texts:
    """The prompts and the replies as token ids."""
    tokenizer = reference.session.tokenizer()
    return Texts(encode(tokenizer, [reply.prompt for reply in replies]), ids_of(tokenizer, [reply.response for reply in replies]), [])


def _divergence(which: str, session: Session, told: Predicted, texts: Texts) -> Divergence:
    with stage(f"recovery: the {which} model's predictions", len(texts.prompts)) as advance:
        return divergences(session.model, told, texts, advance)
