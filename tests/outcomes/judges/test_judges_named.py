"""Which judge is meant: nothing is loaded or asked before it judges, and nothing secret is repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from abliterate.config import JudgeConfig
from abliterate.errors import InputError
from abliterate.outcomes.judges.chat import Chat
from abliterate.outcomes.judges.classifier import Classifier
from abliterate.outcomes.judges.judge import Judge, Rules
from abliterate.outcomes.judges.named import judge_of
from abliterate.replies.transcripts import Transcript


def test_the_rules_are_the_default_and_judge_as_before() -> None:
    made = judge_of(JudgeConfig())
    given = [Transcript("s", "1", "q", "I can't help with that."), Transcript("s", "2", "q", "Paris.")]
    assert isinstance(made, Rules) and made(given) == [t.verdict() for t in given]


def test_a_chat_judge_has_its_server_and_its_memory_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLITERATE_CACHE", str(tmp_path))
    made = judge_of(JudgeConfig(judge="chat:http://host:8000/v1/#org/judge", concurrency=3, patience=5))
    assert isinstance(made, Chat) and isinstance(made, Judge)
    assert (made.server.url, made.model, made.server.concurrency, made.server.patience) == ("http://host:8000/v1", "org/judge", 3, 5.0)
    assert made.memory.path.parent == tmp_path
    assert made.name == "chat:http://host:8000/v1#org/judge"
    plain = judge_of(JudgeConfig(judge="chat:http://host:8000/v1"))
    assert isinstance(plain, Chat) and plain.model is None and plain.name == "chat:http://host:8000/v1"


def test_a_classifier_judge_has_its_labels(tmp_path: Path) -> None:
    made = judge_of(JudgeConfig(judge="classifier:org/model@A=refused,B=answered", device="cpu"))
    assert isinstance(made, Classifier) and (made.given, made.device) == ("org/model", "cpu")
    assert made.labels.given == {"A": "refused", "B": "answered"}
    (tmp_path / "a@b").mkdir()
    folder = judge_of(JudgeConfig(judge=f"classifier:{tmp_path / 'a@b'}"))
    assert isinstance(folder, Classifier) and folder.given == str(tmp_path / "a@b") and folder.labels.given is None


@pytest.mark.parametrize("given", ["", "rule", "rules:", "chat", "chat:", "classifier:", "classifier", "http://host/v1"])
def test_another_form_is_refused_with_those_there_are(given: str) -> None:
    with pytest.raises(InputError, match=r"rules, classifier:ID\[@LABELS\], chat:URL\[#MODEL\]"):
        judge_of(JudgeConfig(judge=given))


@pytest.mark.parametrize("given", ["chat:host", "chat:http://me:hunter2@host/v1", "chat:http://host/v1?key=hunter2", "classifier:m@"])
def test_what_is_no_server_or_map_is_refused_without_its_secrets(given: str) -> None:
    with pytest.raises(InputError) as raised:
        judge_of(JudgeConfig(judge=given))
    assert "hunter2" not in str(raised.value) and "--judge" in str(raised.value)
