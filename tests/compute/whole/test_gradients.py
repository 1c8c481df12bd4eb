"""Gradients to an edit through the frozen model: of what the edited checkpoint computes, and right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import FAMILIES, Case
from held import held, with_reuse
from torch import Tensor

from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.compute.passes import Intervention
from abliterate.compute.whole.gradients import MicroBatch, logits, micro_batch
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.compute.whole.reuse import Reuse
from abliterate.model.edit import Edit, edit_from_rows

SEQUENCES = [[5, 6, 7, 8, 9 + n, 20 + 3 * n, *range(30, 30 + 2 * n)] for n in range(3)]
TRIED = [case for case in FAMILIES if case.model_type in ("llama", "gemma2", "olmo2", "gpt_oss", "qwen3_moe", "mamba2")]


def some_plan(model: WholeModel, k: int = 1) -> Edit:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(model.folder.layers, k, model.folder.d_model, generator=generator)
    return edit_from_rows(rows, torch.rand(model.folder.layers, 2, generator=generator))


def leaves(edit: Edit) -> Edit:
    return Edit(edit.direction.clone().requires_grad_(), edit.strength.clone().requires_grad_(), "skip")


def loss(model: WholeModel, edit: Edit, micro: MicroBatch, backward: bool) -> float:
    total = 0.0
    for indices, rows in logits(model, Intervention(edit), SEQUENCES, 2, micro):
        weights = torch.linspace(-1, 1, rows.shape[-1]) * torch.tensor([1.0 + i for i in indices])[:, None, None]
        part = (rows.log_softmax(-1) * weights).sum()
        total += float(part)
        if backward:
            part.backward()
    return total


@pytest.mark.parametrize("case", TRIED, ids=str)
def test_gradients_are_the_slopes_of_the_loss(case: Case) -> None:
    model = held(case)
    edit = leaves(some_plan(model))
    loss(model, edit, MicroBatch(1000), True)
    assert edit.strength.grad is not None and edit.direction.grad is not None
    step = torch.randn(edit.strength.shape, generator=torch.Generator().manual_seed(1))
    for slope, moved in (
        (float((edit.strength.grad * step).sum()), lambda e: replace(edit, strength=(edit.strength + e * step).detach())),
    ):
        found = (loss(model, moved(1e-3), MicroBatch(1000), False) - loss(model, moved(-1e-3), MicroBatch(1000), False)) / 2e-3
        assert slope == pytest.approx(found, rel=0.03, abs=0.05)


@pytest.mark.parametrize("micro", [MicroBatch(8), MicroBatch(1000, recompute=True)], ids=["in parts", "computed again"])
def test_micro_batches_and_recomputation_change_nothing(tiny: Callable[..., Path], micro: MicroBatch) -> None:
    model = load_model(tiny(), "float32", "cpu")
    one, other = leaves(some_plan(model)), leaves(some_plan(model))
    assert loss(model, one, MicroBatch(1000), True) == pytest.approx(loss(model, other, micro, True), rel=1e-5)
    for wanted, got in ((one.strength.grad, other.strength.grad), (one.direction.grad, other.direction.grad)):
        assert wanted is not None and got is not None and wanted.abs().max() > 0
        assert torch.allclose(wanted, got, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    assert all("forward" not in model.block(layer).__dict__ for layer in range(model.folder.layers))


def test_a_prefix_that_is_computed_once_has_its_share_of_the_gradient(tiny: Callable[..., Path]) -> None:
    model = load_model(tiny(), "float32", "cpu")
    assert model.reuse.shares
    alone = with_reuse(model, Reuse())
    one, other = leaves(some_plan(model)), leaves(some_plan(model))
    assert loss(model, one, MicroBatch(1000), True) == pytest.approx(loss(alone, other, MicroBatch(1000), True), rel=1e-5)
    assert one.strength.grad is not None and other.strength.grad is not None
    assert torch.allclose(one.strength.grad, other.strength.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
def test_the_checkpoint_computes_what_was_tuned_to_rounding(family: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = load_model(tiny(family=family), "float32", "cpu")
    edit = some_plan(model, k=2)
    edit_checkpoint(model.folder, edit, tmp_path / "edited", "tiny", lambda proof: "card")
    baked = load_model(tmp_path / "edited", "float32", "cpu")
    nothing = replace(edit, strength=torch.zeros_like(edit.strength))

    def computed(of: WholeModel, under: Edit) -> Tensor:
        with torch.no_grad():
            return torch.cat([rows for _, rows in logits(of, Intervention(under), SEQUENCES, 2, MicroBatch(1000))])

    wanted, got, before = computed(model, edit), computed(baked, nothing), computed(model, nothing)
    assert (got - wanted).norm() <= 1e-5 * wanted.norm() < 1e-3 * (before - wanted).norm()


def test_less_memory_makes_smaller_micro_batches_and_then_computes_again(tiny: Callable[..., Path]) -> None:
    model = load_model(tiny(), "float32", "cpu")
    rich, poor, none = (micro_batch(replace(model, memory=bytes_), 40) for bytes_ in (1 << 40, 2 << 20, 1 << 10))
    assert not rich.recompute and rich.tokens > poor.tokens >= 40
    assert none.recompute and none.tokens == 40
