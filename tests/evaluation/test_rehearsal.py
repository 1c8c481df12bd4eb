"""Full replies under a hooked edit: what is counted, and what an edit's cost is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from abliterate.evaluation import rehearsal
from abliterate.evaluation.rehearsal import Rehearsal, rehearsal_document, rehearse
from abliterate.model.forward import Batch
from abliterate.model.load import LocalModel, load_model
from abliterate.model.template import encode

REFUSED, ANSWERED, LOOP = "I'm sorry, but I can't help with that.", "The sea is salt because rivers bring it there.", "the the " * 40


@pytest.fixture
def model(tiny: Callable[..., Path]) -> LocalModel:
    return load_model(tiny())


def _says(monkeypatch: pytest.MonkeyPatch, replies: dict[str, str]) -> None:
    """The model replies to a prompt by what the prompt says."""

    def reply_ids(model: LocalModel, batch: Batch, max_new_tokens: int) -> list[list[int]]:
        texts = model.tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True)
        return [model.tokenizer(next(r for key, r in replies.items() if key in text))["input_ids"] for text in texts]

    monkeypatch.setattr(rehearsal, "reply_ids", reply_ids)


def test_withheld_counts_targets_alone_and_degenerate_both(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _says(monkeypatch, {"refuse": REFUSED, "answer": ANSWERED, "loop": LOOP})
    target, baseline = (encode(model.tokenizer, texts) for texts in (["refuse", "answer", "loop", "answer"], ["refuse", "loop"]))
    heard: list[int] = []
    assert rehearse(model, target, baseline, 64, 4, heard.append) == Rehearsal(withheld=1 / 4, degenerate=2 / 6)
    assert sum(heard) == 6


def test_real_replies_of_a_random_model_are_judged(model: LocalModel) -> None:
    found = rehearse(model, encode(model.tokenizer, ["One?", "Two?"]), encode(model.tokenizer, ["Three?"]), 48, 2)
    assert found.withheld == 0 and found.degenerate > 0.5  # a random model only ever loops or prints soup


@pytest.mark.parametrize(("degenerate", "cost"), [(0.1, 0.2), (0.0, 0.2), (0.4, 0.5)])
def test_cost_is_what_is_withheld_and_what_broke_beyond_the_base(degenerate: float, cost: float) -> None:
    assert Rehearsal(0.2, degenerate).cost(Rehearsal(0.9, 0.1)) == pytest.approx(cost)


def test_the_document_lists_the_cheapest_first() -> None:
    base, good, bad = Rehearsal(0.9, 0.0), Rehearsal(0.1, 0.0), Rehearsal(0.0, 0.5)
    document = rehearsal_document(base, [("broken", 1.0, bad), ("sound", 0.85, good)])
    assert [(row["name"], row["strength"], row["cost"]) for row in document["tried"]] == [("sound", 0.85, 0.1), ("broken", 1.0, 0.5)]
    assert document["base"] == {"withheld": 0.9, "degenerate": 0.0}
