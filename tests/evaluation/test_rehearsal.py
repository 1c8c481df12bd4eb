"""Full replies under a hooked edit: what is counted, and what an edit's cost is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from abliterate.evaluation.rehearsal import Rehearsal, rehearsal_document, rehearse
from abliterate.model.passes import NOTHING, Advance, Change, Model, Pass, unheard
from abliterate.model.plan import plan_from_direction
from abliterate.model.resident import Resident, load_model
from abliterate.model.template import encode

REFUSED, ANSWERED, LOOP = "I'm sorry, but I can't help with that.", "The sea is salt because rivers bring it there.", "the the " * 40


@pytest.fixture
def model(tiny: Callable[..., Path]) -> Resident:
    return load_model(tiny())


@dataclass(frozen=True)
class Told:
    """A model that replies to a prompt by what the prompt says, and says nothing else under a change."""

    model: Resident
    says: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def replies(self, passes: Sequence[Pass], max_new_tokens: int, advance: Advance = unheard) -> Iterator[Any]:
        for number, asked in enumerate(passes):
            texts = self.tokenizer.batch_decode(asked.sequences, skip_special_tokens=True)
            said = [LOOP if asked.change.plan else next(r for key, r in self.says.items() if key in text) for text in texts]
            yield number, range(len(texts)), [self.tokenizer(text)["input_ids"] for text in said]
            advance(len(texts))


def test_withheld_counts_targets_alone_and_degenerate_both(model: Resident) -> None:
    told = Told(model, {"refuse": REFUSED, "answer": ANSWERED, "loop": LOOP})
    target, baseline = (encode(model.tokenizer, texts) for texts in (["refuse", "answer", "loop", "answer"], ["refuse", "loop"]))
    heard: list[float] = []
    plan = plan_from_direction(torch.ones(32), 4, policy="skip")
    found = rehearse(cast("Model", told), [NOTHING, Change(plan)], target, baseline, 64, heard.append)
    assert found == [Rehearsal(withheld=1 / 4, degenerate=2 / 6), Rehearsal(withheld=0.0, degenerate=1.0)]
    assert sum(heard) == 12


def test_real_replies_of_a_random_model_are_judged(model: Resident) -> None:
    (found,) = rehearse(model, [NOTHING], encode(model.tokenizer, ["One?", "Two?"]), encode(model.tokenizer, ["Three?"]), 48)
    assert found.withheld == 0 and found.degenerate > 0.5  # a random model only ever loops or prints soup


@pytest.mark.parametrize(("degenerate", "cost"), [(0.1, 0.2), (0.0, 0.2), (0.4, 0.5)])
def test_cost_is_what_is_withheld_and_what_broke_beyond_the_base(degenerate: float, cost: float) -> None:
    assert Rehearsal(0.2, degenerate).cost(Rehearsal(0.9, 0.1)) == pytest.approx(cost)


def test_the_document_lists_the_cheapest_first() -> None:
    base, good, bad = Rehearsal(0.9, 0.0), Rehearsal(0.1, 0.0), Rehearsal(0.0, 0.5)
    document = rehearsal_document(base, [("broken", 1.0, bad), ("sound", 0.85, good)])
    assert [(row["name"], row["strength"], row["cost"]) for row in document["tried"]] == [("sound", 0.85, 0.1), ("broken", 1.0, 0.5)]
    assert document["base"] == {"withheld": 0.9, "degenerate": 0.0}
