"""Edits along random directions, beside the one that was chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import first_token_logprobs, save_tiny

from abliterate.compute.hooks import ablated
from abliterate.compute.passes import Pass
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.measures.predictions import kl_divergence
from abliterate.measures.random_directions import SEEDS, control, control_work, first_tokens, random_plan
from abliterate.model.chat.template import encode
from abliterate.model.edit import Edit, edit_from_direction, edit_from_rows, load_edit, save_edit

LAYERS, D_MODEL = 4, 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    return load_model(save_tiny(tmp_path_factory.mktemp("control") / "m", layers=LAYERS, d_model=D_MODEL), "float32", "cpu")


def drawn(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def everywhere() -> Edit:
    return edit_from_direction(drawn(D_MODEL), LAYERS, torch.rand(LAYERS, 2, generator=torch.Generator().manual_seed(0)), "edit")


def a_block() -> Edit:
    return replace(edit_from_rows(drawn(LAYERS, 3, D_MODEL), torch.ones(LAYERS, 2)), keep_norms=True)


def a_writer() -> Edit:
    rows = torch.linalg.qr(drawn(LAYERS, 2, D_MODEL, 1)).Q.transpose(-1, -2)
    return Edit(rows.contiguous(), 0.5 * torch.ones(LAYERS, 2), "skip")


PLANS: tuple[Callable[[], Edit], ...] = (everywhere, a_block, a_writer)


@pytest.mark.parametrize("of", PLANS)
def test_a_random_plan_differs_from_the_plan_in_its_directions_alone(of: Callable[[], Edit], tmp_path: Path) -> None:
    edit = of()
    made = random_plan(edit, 0)
    assert made.direction.shape == edit.direction.shape and torch.equal(made.strength, edit.strength)
    assert (made.embedding, made.keep_norms) == (edit.embedding, edit.keep_norms)
    gram = made.direction.double() @ made.direction.double().transpose(-1, -2)
    torch.testing.assert_close(gram, torch.eye(edit.direction.shape[2]).double().expand_as(gram), atol=1e-6, rtol=0)
    overlap = (made.direction * edit.direction).sum(-1).abs()
    assert float(overlap.max()) < 0.9
    save_edit(made, tmp_path / "plan.safetensors")
    load_edit(tmp_path / "plan.safetensors")  # as good a plan as any


def test_what_is_shared_in_the_plan_is_shared_in_a_random_one() -> None:
    assert random_plan(everywhere(), 1).same_everywhere()
    block = random_plan(a_block(), 1).direction
    assert torch.equal(block[:, 0], block[:, 1]) and not torch.equal(block[0], block[1])
    writer = random_plan(a_writer(), 1).direction
    assert not torch.equal(writer[:, 0], writer[:, 1])


def test_a_seed_gives_its_own_directions_and_always_the_same() -> None:
    first, again, other = (random_plan(a_block(), seed).direction for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_first_tokens_are_those_of_each_ablated_model(model: WholeModel) -> None:
    target, harmless = (encode(model.tokenizer, texts) for texts in (["Burn it", "Steal the bridge!", "x"], ["Draw", "Name a river"]))
    edits = [everywhere(), a_block()]
    advanced = 0

    def advance(done: float) -> None:
        nonlocal advanced
        advanced += int(done)

    found = first_tokens(model, edits, target, harmless, advance)
    own, base = first_token_logprobs(model, target).argmax(-1), first_token_logprobs(model, harmless)
    for edit, measured in zip(edits, found, strict=True):
        with ablated(model, edit):
            likeliest, logprobs = first_token_logprobs(model, target).argmax(-1), first_token_logprobs(model, harmless)
        assert measured.same == (likeliest == own).tolist()
        assert measured.kl == pytest.approx(float(kl_divergence(base, logprobs).mean()), rel=1e-4)
    assert advanced == (1 + len(edits)) * (len(target) + len(harmless))


def test_a_plan_without_strength_changes_no_first_token(model: WholeModel) -> None:
    prompts = encode(model.tokenizer, ["Burn it", "Steal the bridge!"])
    (found,) = first_tokens(model, [everywhere().scaled(0.0)], prompts, prompts)
    assert found.same == [True, True] and found.kl == pytest.approx(0.0, abs=1e-9)


def test_the_model_is_asked_once_and_unedited_first(model: WholeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Pass]] = []
    real = WholeModel.logits
    monkeypatch.setattr(WholeModel, "logits", lambda self, passes, advance: asked.append(list(passes)) or real(self, passes, advance))
    prompts = encode(model.tokenizer, ["Burn it"])
    control(model, everywhere(), ["bad"], 5, prompts, prompts)
    ((unedited, plain, *changed),) = asked
    assert unedited.intervention.edit is None and plain.intervention.edit is None
    assert [each.intervention.edit is not None and each.kept for each in changed] == [1] * 2 * (1 + len(SEEDS))
    assert sum(len(each.sequences) for each in asked[0]) == control_work(prompts, prompts)


def test_the_control_counts_withheld_prompts_with_their_intervals(model: WholeModel) -> None:
    prompts = encode(model.tokenizer, ["Burn it", "Steal the bridge!", "x", "Sing"])
    found = control(model, everywhere(), ["bad", "worse"], 9, prompts, prompts[:2])
    assert (found.seeds, found.set, found.n, found.n_withheld) == ((0, 1, 2), ("bad", "worse"), 9, 4)
    rates = [found.same_first.edited, *found.same_first.random]
    assert len(rates) == 4 and all(each.n == 4 and len(each.ci95) == 2 for each in rates)
    assert found.kl_first_token.edited > 0 and len(found.kl_first_token.random) == 3


def test_where_nothing_is_withheld_there_is_no_rate_and_still_a_divergence(model: WholeModel) -> None:
    found = control(model, everywhere(), ["bad"], 9, [], encode(model.tokenizer, ["Draw"]))
    assert found.same_first.edited.document() == {"k": 0, "n": 0, "rate": None, "ci95": None}
    assert found.kl_first_token.random[0] > 0
