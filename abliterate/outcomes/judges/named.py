"""From what the user calls a judge to the judge."""

from __future__ import annotations

from pathlib import Path

from abliterate.config import JudgeConfig, server_url
from abliterate.errors import InputError
from abliterate.files import cache_folder
from abliterate.measures.detector import RULES
from abliterate.outcomes.judges.chat import Chat
from abliterate.outcomes.judges.judge import Judge, Rules
from abliterate.outcomes.judges.labels import Labels, read_labels
from abliterate.outcomes.judges.memory import Memory
from abliterate.replies.server import Server

FORMS = "rules, classifier:ID[@LABELS], chat:URL[#MODEL]"


def judge_of(config: JudgeConfig) -> Judge:
    """The judge that ``config.judge`` names; nothing is loaded or asked yet. Raises InputError for another form."""
    kind, _, rest = config.judge.partition(":")
    if config.judge == RULES:
        return Rules()
    if kind == "chat" and rest:
        url, _, model = rest.partition("#")
        server = Server(server_url(url, "--judge"), config.concurrency, float(config.request_timeout), float(config.patience))
        return Chat(server, model or None, Memory(cache_folder() / "judgements.sqlite"))
    if kind == "classifier" and rest:
        from abliterate.outcomes.judges.classifier import Classifier  # transformers' classifiers, which only this judge needs

        model, labels = _split(rest)
        return Classifier(model, labels, config.device)
    raise InputError(f"--judge: no such judge; it is one of {FORMS}")


def _split(given: str) -> tuple[str, Labels]:
    """Model and label map; a folder may have an @ in its name."""
    model, at, labels = given.partition("@")
    if not at or Path(given).expanduser().is_dir():
        return given, Labels()
    if not labels:
        raise InputError("--judge: behind the @ of a classifier stands its label map: LABEL=outcome,... or a JSON file")
    return model, read_labels(labels)
