"""Hooks: what they see and change, and that they are gone afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import save_tiny

from abliterate.compute.hooks import ablated, added, captured, cleared, without
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.errors import InputError
from abliterate.model.edit import Edit, edit_from_direction

IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    return load_model(save_tiny(tmp_path_factory.mktemp("hooks"), request.param, tied=request.param == "qwen2"), "float32", "cpu")


def _logits(model: WholeModel) -> torch.Tensor:
    with torch.no_grad():
        return model.module(IDS).logits


def _hooks(model: WholeModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())


CONTEXTS: dict[str, Callable[[WholeModel], AbstractContextManager[Any]]] = {
    "ablated": lambda model: ablated(model, edit_from_direction(torch.ones(32), 4, policy="edit")),
    "added": lambda model: added(model, 1, torch.ones(32)),
    "captured": lambda model: captured(model, 3),
    "cleared": lambda model: cleared(model, torch.eye(2, 32)),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_hooks_are_removed_after_an_exception(model: WholeModel, name: str) -> None:
    before, count = _logits(model), _hooks(model)
    with pytest.raises(ZeroDivisionError), CONTEXTS[name](model):
        assert _hooks(model) > count
        _ = 1 // 0
    assert _hooks(model) == count
    assert torch.equal(_logits(model), before)


def _without(model: WholeModel, **names: str) -> WholeModel:
    """The model with a layout that names what it hasn't."""
    return replace(model, folder=replace(model.folder, layout=replace(model.folder.layout, **names)))


@pytest.mark.parametrize(
    ("names", "context"),
    [
        ({"embedding_module": "model.absent"}, CONTEXTS["ablated"]),
        ({"positions": "model.absent.weight"}, CONTEXTS["ablated"]),
        ({"block_module": "model.absent.{}"}, CONTEXTS["captured"]),
        ({"block_module": "model.absent.{}"}, CONTEXTS["added"]),
    ],
    ids=["embedding", "positions", "captured blocks", "the block that is added to"],
)
def test_hooks_are_removed_when_one_cannot_be_placed(
    model: WholeModel, names: dict[str, str], context: Callable[[WholeModel], AbstractContextManager[Any]]
) -> None:
    count = _hooks(model)
    with pytest.raises(InputError, match=r"no module 'model\.absent"), context(_without(model, **names)):
        pytest.fail("a module that isn't there was found")
    assert _hooks(model) == count


@pytest.mark.parametrize("wrong", ["a block too many", "a layout of other modules"])
def test_a_plan_whose_writers_are_not_in_the_model_is_not_run_in_part(model: WholeModel, wrong: str) -> None:
    layers = 5 if wrong == "a block too many" else 4
    asked = model if layers == 5 else _without(model, block_module="model.absent.{}")
    with pytest.raises(InputError), ablated(asked, edit_from_direction(torch.ones(32), layers, policy="skip")):
        pytest.fail("nothing was hooked")


def test_captured_streams_are_the_hidden_states(model: WholeModel) -> None:
    with torch.no_grad(), captured(model, 20) as seen:
        states = model.module(IDS, output_hidden_states=True).hidden_states
    assert list(seen) == list(range(5))
    for index in range(4):
        assert torch.equal(seen[index], states[index])
    torch.testing.assert_close(model.module.model.norm(seen[4]), states[4])


def test_captured_keeps_the_last_positions_only(model: WholeModel) -> None:
    with torch.no_grad(), captured(model, 20) as whole:
        model.module(IDS)
    with torch.no_grad(), captured(model, 3) as last:
        model.module(IDS)
    assert all(torch.equal(last[index], whole[index][:, -3:]) for index in whole)


def test_captured_sees_the_ablated_stream(model: WholeModel, unit_direction: Callable[..., torch.Tensor]) -> None:
    r = unit_direction(32)
    with torch.no_grad(), ablated(model, edit_from_direction(r, 4, policy="edit")), captured(model, 20) as seen:
        model.module(IDS)
    for stream in seen.values():
        assert float((stream @ r).abs().max()) < 1e-5 * float(stream.norm(dim=-1).max())


def test_a_skipped_embedding_keeps_its_component(model: WholeModel, unit_direction: Callable[..., torch.Tensor]) -> None:
    r = unit_direction(32)
    with torch.no_grad(), captured(model, 20) as before:
        model.module(IDS)
    with torch.no_grad(), ablated(model, edit_from_direction(r, 4, policy="skip")), captured(model, 20) as seen:
        model.module(IDS)
    torch.testing.assert_close(seen[4] @ r, before[0] @ r, atol=1e-4, rtol=1e-4)


def test_untying_edits_what_enters_the_stream_and_not_what_is_read_from_it(
    model: WholeModel, unit_direction: Callable[..., torch.Tensor]
) -> None:
    r = unit_direction(32)
    edit = replace(edit_from_direction(r, 4, policy="edit"), embedding="untie")
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad(), ablated(model, edit), captured(model, 20) as streams:
        logits = model.module(IDS).logits
        handle = model.module.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.update(read=args[0]))
        model.module(IDS)
        handle.remove()
    assert float((streams[0] @ r).abs().max()) < 1e-5 * float(streams[0].norm(dim=-1).max())
    torch.testing.assert_close(logits, seen["read"] @ model.module.get_output_embeddings().weight.T)
    assert float((seen["read"] @ r).abs().max()) > 1e-3  # the final norm puts it back; a tied, edited unembedding wouldn't read it


def test_each_component_loses_its_own_rows_by_its_own_strength(model: WholeModel) -> None:
    rows = torch.linalg.qr(torch.randn(4, 2, 32, 2, generator=torch.Generator().manual_seed(1))).Q.mT.contiguous()
    strength = torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    wrote: dict[str, torch.Tensor] = {}

    def watch(name: str, output: Any) -> None:
        wrote[name] = output[0] if isinstance(output, tuple) else output

    names = ("model.layers.0.self_attn", "model.layers.0.mlp", "model.layers.2.mlp")
    plain = [model.part(n).register_forward_hook(lambda m, a, o, n=n: watch(f"before {n}", o)) for n in names]
    with torch.no_grad(), ablated(model, Edit(rows, strength, "skip")):
        late = [model.part(n).register_forward_hook(lambda m, a, o, n=n: watch(f"after {n}", o)) for n in names]
        model.module(IDS)
    for handle in [*plain, *late]:
        handle.remove()
    for name, (layer, component, share) in zip(names, ((0, 0, 0.5), (0, 1, 1.0), (2, 1, 0.0)), strict=True):
        before, after = (wrote[f"{when} {name}"] @ rows[layer, component].T for when in ("before", "after"))
        torch.testing.assert_close(after, share * before, atol=1e-5, rtol=1e-5)
        assert float(before.abs().max()) > 1e-3


def test_cleared_lets_nothing_of_the_rows_enter_the_first_block_and_all_else(model: WholeModel) -> None:
    rows = torch.eye(2, 32)
    with torch.no_grad(), captured(model, 20) as before:
        model.module(IDS)
    with torch.no_grad(), cleared(model, rows), captured(model, 20) as after:
        model.module(IDS)
    assert not after[0][..., :2].any() and torch.equal(after[0][..., 2:], before[0][..., 2:])
    assert not torch.allclose(after[1], before[1])


@pytest.mark.parametrize("policy", ["edit", "skip"])
def test_strength_zero_changes_nothing(model: WholeModel, policy: Any) -> None:
    before = _logits(model)
    with ablated(model, edit_from_direction(torch.ones(32), 4, 0.0, policy)):
        assert torch.equal(_logits(model), before)


def test_added_shifts_the_stream_after_its_block_and_not_before(model: WholeModel) -> None:
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
