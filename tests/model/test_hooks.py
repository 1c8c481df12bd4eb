"""Hooks: what they see and change, and that they are gone afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from conftest import save_tiny

from abliterate.model.hooks import ablated, added, captured, without
from abliterate.model.load import LocalModel, load_model
from abliterate.model.plan import plan_from_direction

IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    return load_model(save_tiny(tmp_path_factory.mktemp("hooks"), request.param, tied=request.param == "qwen2"), "float32", "cpu")


def _logits(model: LocalModel) -> torch.Tensor:
    with torch.no_grad():
        return model.module(IDS).logits


def _hooks(model: LocalModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())


CONTEXTS: dict[str, Callable[[LocalModel], AbstractContextManager[Any]]] = {
    "ablated": lambda model: ablated(model, plan_from_direction(torch.ones(32), 4, policy="edit")),
    "added": lambda model: added(model, 1, torch.ones(32)),
    "captured": lambda model: captured(model, 3),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_hooks_are_removed_after_an_exception(model: LocalModel, name: str) -> None:
    before, count = _logits(model), _hooks(model)
    with pytest.raises(ZeroDivisionError), CONTEXTS[name](model):
        assert _hooks(model) > count
        _ = 1 // 0
    assert _hooks(model) == count
    assert torch.equal(_logits(model), before)


def test_hooks_are_removed_when_one_cannot_be_placed(model: LocalModel) -> None:
    count = _hooks(model)
    with pytest.raises(AttributeError), ablated(model, plan_from_direction(torch.ones(32), 5)):
        pytest.fail("block 4 was found")
    assert _hooks(model) == count


def test_captured_streams_are_the_hidden_states(model: LocalModel) -> None:
    with torch.no_grad(), captured(model, 20) as seen:
        states = model.module(IDS, output_hidden_states=True).hidden_states
    assert list(seen) == list(range(5))
    for index in range(4):
        assert torch.equal(seen[index], states[index])
    torch.testing.assert_close(model.module.model.norm(seen[4]), states[4])


def test_captured_keeps_the_last_positions_only(model: LocalModel) -> None:
    with torch.no_grad(), captured(model, 20) as whole:
        model.module(IDS)
    with torch.no_grad(), captured(model, 3) as last:
        model.module(IDS)
    assert all(torch.equal(last[index], whole[index][:, -3:]) for index in whole)


def test_captured_sees_the_ablated_stream(model: LocalModel, unit_direction: Callable[..., torch.Tensor]) -> None:
    r = unit_direction(32)
    with torch.no_grad(), ablated(model, plan_from_direction(r, 4, policy="edit")), captured(model, 20) as seen:
        model.module(IDS)
    for stream in seen.values():
        assert float((stream @ r).abs().max()) < 1e-5 * float(stream.norm(dim=-1).max())


def test_a_skipped_embedding_keeps_its_component(model: LocalModel, unit_direction: Callable[..., torch.Tensor]) -> None:
    r = unit_direction(32)
    with torch.no_grad(), captured(model, 20) as before:
        model.module(IDS)
    with torch.no_grad(), ablated(model, plan_from_direction(r, 4, policy="skip")), captured(model, 20) as seen:
        model.module(IDS)
    torch.testing.assert_close(seen[4] @ r, before[0] @ r, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("policy", ["edit", "skip"])
def test_strength_zero_changes_nothing(model: LocalModel, policy: Any) -> None:
    before = _logits(model)
    with ablated(model, plan_from_direction(torch.ones(32), 4, 0.0, policy)):
        assert torch.equal(_logits(model), before)


def test_added_shifts_the_stream_after_its_block_and_not_before(model: LocalModel) -> None:
    shift = torch.arange(32.0)
    with torch.no_grad(), captured(model, 20) as before:
        model.module(IDS)
    with torch.no_grad(), added(model, 2, shift), captured(model, 20) as after:
        model.module(IDS)
    assert all(torch.equal(after[index], before[index]) for index in range(3))
    torch.testing.assert_close(after[3], before[3] + shift)
    assert not torch.allclose(after[4], before[4])


def test_without_removes_its_share_of_each_row() -> None:
    y = torch.tensor([[3.0, 4.0, 5.0]])
    assert torch.equal(without(y, torch.eye(2, 3), 1.0), torch.tensor([[0.0, 0.0, 5.0]]))
    assert torch.equal(without(y, torch.eye(1, 3), 0.5), torch.tensor([[1.5, 4.0, 5.0]]))
