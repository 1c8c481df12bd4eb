"""How a model begins to withhold, and which opening each baseline prompt is tried with."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import save_tiny

from abliterate.evaluation.openings import OPENING_TOKENS, PROBE_TOKENS, Openings, dealt, own_openings
from abliterate.model.passes import Pass
from abliterate.model.resident import Resident, load_model
from abliterate.model.template import encode
from abliterate.prompts import Prompt


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Resident:
    return load_model(save_tiny(Path(tmp_path_factory.mktemp("openings")) / "m"), "float32", "cpu")


def test_openings_are_the_first_tokens_of_the_models_own_replies(model: Resident) -> None:
    encoded = encode(model.tokenizer, ["One", "Another one", "And a third"])
    found = own_openings(model, encoded)
    assert found.asked == 3
    for index, prompt, opening in zip(found.indices, found.prompts, found.openings, strict=True):
        assert prompt == encoded[index]
        ((_, _, (reply,)),) = model.replies([Pass([prompt])], PROBE_TOKENS)
        assert opening == (reply or [model.tokenizer.eos_token_id])[:OPENING_TOKENS]


def test_where_nothing_is_withheld_all_prompts_are_kept(model: Resident) -> None:
    found = own_openings(model, encode(model.tokenizer, ["One", "Two"]))
    assert found.withheld in (0, len(found.indices)) and (found.withheld or found.indices == [0, 1])


TARGET = [Prompt("t1", "a", "en"), Prompt("t2", "b", "zh"), Prompt("t3", "c", "en"), Prompt("t4", "d", "zh")]
OWN = Openings([[1], [2], [3]], [[10], [20], [30]], [0, 1, 2], 4, 3)


def test_a_baseline_prompt_gets_the_opening_of_its_twin() -> None:
    assert dealt(OWN, TARGET, [Prompt("b3", "x", "en", pair="t3"), Prompt("b2", "y", "zh", pair="t2")]) == [[30], [20]]


def test_without_a_withheld_twin_it_gets_one_in_its_language() -> None:
    assert dealt(OWN, TARGET, [Prompt("b4", "x", "zh", pair="t4"), Prompt("n", "y", "zh")]) == [[20], [20]]


def test_a_language_without_openings_gets_any() -> None:
    assert dealt(OWN, TARGET, [Prompt("f", "x", "fr"), Prompt("g", "y", "fr")]) == [[10], [20]]
