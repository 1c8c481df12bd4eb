"""A sequence classifier as a judge: a tiny random BERT, whose head is set so that its verdict is known."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertTokenizerFast

from abliterate.errors import InputError
from abliterate.outcomes.judges import classifier
from abliterate.outcomes.judges.classifier import Classifier
from abliterate.outcomes.judges.judge import Judge
from abliterate.outcomes.judges.labels import Labels, read_labels
from abliterate.replies.transcripts import Transcript

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "sorry", "yes", "paris", "why", "who", "think"]
LABELS = Labels({"REJECTION": "refused", "NORMAL": "answered"})
Save = Callable[..., Path]


@pytest.fixture
def bert(tmp_path: Path) -> Save:
    """``bert(labels, **config)`` saves a random classifier; ``told_by`` sets its head so that this word decides for the first label."""

    def save(*labels: str, kind: type = BertForSequenceClassification, told_by: str | None = None, **config: object) -> Path:
        folder = tmp_path / f"bert-{len(list(tmp_path.iterdir()))}"
        vocab = tmp_path / "vocab.txt"
        vocab.write_text("\n".join(WORDS))
        torch.manual_seed(0)
        names = labels or ("REJECTION", "NORMAL")
        options = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 32,
        }
        model = kind(BertConfig(vocab_size=len(WORDS), id2label=dict(enumerate(names)), **{**options, **config})).eval()
        tokenizer = BertTokenizerFast(str(vocab), model_max_length=32)
        if told_by is not None:
            with torch.no_grad():
                seen = [model.bert(**tokenizer(w, return_tensors="pt")).pooler_output[0] for w in (told_by, "yes")]
                model.classifier.weight.copy_(torch.stack([seen[0] - seen[1], seen[1] - seen[0]]) * 50)
                middle = (seen[0] + seen[1]) / 2
                model.classifier.bias.copy_(-model.classifier.weight @ middle)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def replies(*texts: str) -> list[Transcript]:
    return [Transcript("s", str(i), "why", text) for i, text in enumerate(texts)]


def test_the_likeliest_label_gives_the_outcome_and_the_rule(bert: Save) -> None:
    made = Classifier(str(bert(told_by="no")), Labels(LABELS.given, "answer"), "cpu")
    assert isinstance(made, Judge)
    found = made(replies("no", "yes", "no"))
    assert [v and v.outcome for v in found] == ["refused", "answered", "refused"]
    assert [v and v.rule.rpartition(" ")[0] for v in found] == ["classifier: REJECTION", "classifier: NORMAL", "classifier: REJECTION"]


def test_many_of_any_length_keep_their_order_whatever_the_batch(bert: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = replies(*(" ".join(["no" if i % 3 else "yes"] * (1 + i * 7 % 20)) for i in range(40)))
    folder = str(bert(told_by="no"))
    whole = Classifier(folder, LABELS, "cpu")(texts)
    monkeypatch.setattr(classifier, "BATCH", 1)
    assert [v and v.outcome for v in Classifier(folder, LABELS, "cpu")(texts)] == [v and v.outcome for v in whole]
    assert len({v.outcome for v in whole if v}) == 2


@pytest.mark.parametrize(("reads", "segments", "pair"), [(None, 2, True), (None, 1, False), ("answer", 2, False), ("pair", 1, True)])
def test_the_prompt_is_the_first_segment_where_the_model_takes_pairs(
    reads: str | None, segments: int, pair: bool, bert: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    real = BertForSequenceClassification.forward

    def watched(self: BertForSequenceClassification, **given: torch.Tensor) -> object:
        seen.append(given["input_ids"][0].tolist())
        return real(self, **{**given, "token_type_ids": torch.zeros_like(given["input_ids"])})

    monkeypatch.setattr(BertForSequenceClassification, "forward", watched)
    Classifier(str(bert(type_vocab_size=segments)), Labels(LABELS.given, reads), "cpu")(replies("paris"))
    words = [WORDS[i] for i in seen[0]]
    assert words == (["[CLS]", "why", "[SEP]", "paris", "[SEP]"] if pair else ["[CLS]", "paris", "[SEP]"])


def test_the_answer_is_judged_without_its_thought(bert: Save) -> None:
    made = Classifier(str(bert(told_by="no")), Labels(LABELS.given, "answer"), "cpu")
    (found,) = made(replies("<think>no no no</think>yes"))
    assert found is not None and found.outcome == "answered"


def test_truncated_and_empty_replies_are_not_classified(bert: Save) -> None:
    done: list[int] = []
    found = Classifier(str(bert()), LABELS, "cpu")(replies("<think>no", "<think></think>", "yes"), done.append)
    assert [v and v.outcome for v in found[:2]] == ["truncated", "deflected"] and sum(done) == 3


def test_an_answer_longer_than_the_model_reads_is_cut(bert: Save) -> None:
    assert None not in Classifier(str(bert()), LABELS, "cpu")(replies("no " * 500, "\ud83d", "😀 " * 300))


def test_labels_that_are_outcomes_need_no_map(bert: Save) -> None:
    (found,) = Classifier(str(bert("Refused", "state-line", "degenerate")), Labels(), "cpu")(replies("yes"))
    assert found is not None and found.outcome in ("refused", "state_line", "degenerate")


def refusal(folder: Path | str, labels: Labels = LABELS) -> str:
    with pytest.raises(InputError) as raised:
        Classifier(str(folder), labels, "cpu")(replies("yes"))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_label_without_an_outcome_is_named(bert: Save) -> None:
    assert "'REJECTION' maps to no outcome" in refusal(bert(), Labels())
    assert "'NORMAL' maps to no outcome" in refusal(bert(), Labels({"REJECTION": "refused"}))
    assert "'NORMAL' maps to no outcome" in refusal(bert(), Labels({"REJECTION": "refused", "NORMAL": "fine"}))
    assert "no label 'LABEL_0'; it has REJECTION, NORMAL" in refusal(bert(), Labels({"LABEL_0": "refused"}))


def test_a_model_without_a_trained_head_is_refused_and_not_made_up(bert: Save) -> None:
    assert "not a sequence classifier: " in refusal(bert(kind=BertForMaskedLM))


def test_a_regression_is_refused(bert: Save) -> None:
    assert "one of several labels" in refusal(bert("SCORE"), Labels({"SCORE": "refused"}))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no config.json in it" in refusal(tmp_path / "empty")


# --- label maps ---


def test_a_map_is_read_alike_from_the_command_line_json_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a=b.json"
    file.write_text('{"A": "refused", "B": "answered"}')
    for given in ("A=refused, B=answered", '{"A": "refused", "B": "answered"}', str(file), '{"labels": {"A": "refused", "B": "answered"}}'):
        found = read_labels(given)
        assert (found.outcomes(["A", "B"]), found.reads) == (("refused", "answered"), None)


def test_a_map_may_say_what_the_classifier_reads() -> None:
    assert read_labels('{"labels": {"A": "refused"}, "reads": "pair"}').reads == "pair"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("none.json", "no such file"),
        ("{", "not JSON"),
        ("[]", "no such file"),
        ("{}", "object that maps labels"),
        ('{"A": 1}', "object that maps labels"),
        ('{"labels": {"A": "refused"}, "reads": "both"}', "'reads' must be answer or pair"),
    ],
)
def test_what_is_no_map_is_refused(given: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        read_labels(given)


@pytest.mark.parametrize("asked_for", ["config", "tokenizer", "model"])
def test_code_that_comes_with_a_classifier_is_not_run_whatever_is_said_to_stdin(
    asked_for: str, bert: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ran = bert(), tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nfrom transformers import BertConfig as C, BertModel as M\n")
    file = folder / ("tokenizer_config.json" if asked_for == "tokenizer" else "config.json")
    said = json.loads(file.read_text())
    said["auto_map"] = {
        "config": {"AutoConfig": "own.C"},
        "tokenizer": {"AutoTokenizer": ["own.C", None]},
        "model": {"AutoModelForSequenceClassification": "own.M"},
    }[asked_for]
    if asked_for == "config":
        said["model_type"] = "bert_of_its_own"
    if asked_for == "tokenizer":
        said["tokenizer_class"] = "OwnTokenizer"
    file.write_text(json.dumps(said))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    unloadable = pytest.raises(InputError, match="can't load a sequence classifier")
    with unloadable if asked_for == "config" else suppress(InputError):  # for the others transformers has code of its own
        Classifier(str(folder), LABELS, "cpu")(replies("no"))
    assert not ran.exists() and sys.stdin.read() == "y\n" * 9
