"""Create the judge that --judge names."""

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
    """The judge that ``config.judge`` names; nothing is loaded or asked yet. Raises InputError if its form is unknown."""
    kind, _, rest = config.judge.partition(":")
    if config.judge == RULES:
        return Rules()
    if kind == "chat" and rest:
        url, _, model = rest.partition("#")
        server = Server(server_url(url, "--judge"), config.concurrency, float(config.request_timeout), float(config.patience))
        return Chat(server, model or None, Memory(cache_folder() / "judgements.sqlite"))
    if kind == "classifier" and rest:
        from abliterate.outcomes.judges.classifier import Classifier  # slow import, needed only by this judge

        model, labels = _split(rest)
        return Classifier(model, labels, config.device)
    raise InputError(f"--judge: unknown judge; give one of {FORMS}")


def _split(given: str) -> tuple[str, Labels]:
    """Model and label map. The name of a folder may contain an @."""
    model, at, labels = given.partition("@")
    if not at or Path(given).expanduser().is_dir():
        return given, Labels()
    if not labels:
        raise InputError("--judge: a label map must follow the @ of a classifier: LABEL=outcome,... or a JSON file")
    return model, read_labels(labels)
