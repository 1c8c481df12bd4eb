"""Below the first block that an edit changes nothing is computed twice, and every logit is the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from families import FAMILIES, VISION
from held import held, logits, shapes_seen
from torch import Tensor

from abliterate.compute.passes import Intervention, Pass
from abliterate.compute.whole import reuse
from abliterate.compute.whole.below import Below, first_changed
from abliterate.compute.whole.model import WholeModel, shared_below
from abliterate.compute.whole.reuse import reuse_of
from abliterate.model.edit import Edit, edit_from_direction

SYSTEM = [5, 6, 7, 8, 9]
STEMS = [[*SYSTEM, *(30 + (7 * n + i) % 60 for i in range(length))] for n, length in enumerate((4, 2, 1))]
SEQUENCES = [[*stem, last] for stem in STEMS for last in (12, 13, 14)]
CASES = {str(case): case for case in [*FAMILIES, *(case for case, _ in VISION)]}


@pytest.fixture(scope="module")
def llama() -> WholeModel:
    return held(CASES["llama"], batch_size=3)


def from_block(model: WholeModel, first: int, unit: Any) -> Edit:
    """An edit of a block and of those above it."""
    edit = edit_from_direction(unit(model.folder.d_model), model.folder.layers, policy="skip")
    edit.strength[:first] = 0
    return edit


@contextmanager
def entered(model: WholeModel) -> Iterator[list[int]]:
    """How often a block is computed; blocks that are passed over are not."""
    counts = [0] * model.folder.layers
    handles = []
    for layer in range(model.folder.layers):
        inside = next(module for name, module in model.block(layer).named_modules() if name and not list(module.children()))

        def count(*args: Any, layer: int = layer) -> None:
            counts[layer] += 1

        handles.append(inside.register_forward_hook(count))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", sorted(CASES))
def test_logits_are_those_of_the_whole_model_or_nothing_is_passed_over(name: str, unit_direction: Any) -> None:
    model = held(CASES[name], batch_size=4)
    last = model.folder.layers - 1
    if not last:
        pytest.skip("one block")
    asked = Pass(SEQUENCES, Intervention(from_block(model, last, unit_direction)), 2)
    wanted = logits(model, asked)
    with shared_below(model, last, SEQUENCES):
        assert ("below" in model.__dict__) == model.reuse.skips
        with entered(model) as counts:
            found = logits(model, asked)
    assert "below" not in model.__dict__
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5
    if model.reuse.skips:
        assert not any(counts[:last])


def test_most_architectures_pass_blocks_over() -> None:
    able = [name for name in ("llama", "qwen2", "gemma2", "gpt2", "gpt_oss", "deepseek_v3") if held(CASES[name]).reuse.skips]
    assert able == ["llama", "qwen2", "gemma2", "gpt2", "gpt_oss", "deepseek_v3"]


def test_only_edits_that_begin_there_or_above_begin_with_the_streams(llama: WholeModel, unit_direction: Any) -> None:
    layers, d = llama.folder.layers, llama.folder.d_model
    shift = unit_direction(d)
    interventions = {
        Intervention(): float("inf"),
        Intervention(shift=shift, shift_layer=0): 0,
        Intervention(shift=shift, shift_layer=1): 1,
        Intervention(edit_from_direction(shift, layers, policy="skip")): 0,
        Intervention(edit_from_direction(shift, layers, policy="edit")): 0,
        Intervention(from_block(llama, 1, unit_direction)): 1,
        Intervention(edit_from_direction(shift, layers, 0.0, policy="skip")): float("inf"),
    }
    for intervention, first in interventions.items():
        assert first_changed(intervention) == first
    wanted = [logits(llama, Pass(SEQUENCES, intervention, 2)) for intervention in interventions]
    with shared_below(llama, 1, SEQUENCES):
        for (intervention, first), alone in zip(interventions.items(), wanted, strict=True):
            with entered(llama) as counts:
                torch.testing.assert_close(logits(llama, Pass(SEQUENCES, intervention, 2)), alone, atol=2e-5, rtol=1e-4)
            assert (counts[0] == 0) == (first >= 1)


def test_sequences_that_were_not_announced_are_computed_whole(llama: WholeModel, unit_direction: Any) -> None:
    intervention = Intervention(from_block(llama, 1, unit_direction))
    asked = Pass([*SEQUENCES, [3, 4, 5, 6]], intervention, 2)
    wanted = logits(llama, asked)
    with shared_below(llama, 1, SEQUENCES), entered(llama) as counts:
        torch.testing.assert_close(logits(llama, asked), wanted, atol=2e-5, rtol=1e-4)
    assert counts[0]


def test_the_streams_are_computed_once_and_as_far_as_they_are_needed(llama: WholeModel, unit_direction: Any) -> None:
    with entered(llama) as counts, shapes_seen(llama) as seen, shared_below(llama, 1, [*SEQUENCES, *SEQUENCES]):
        assert counts[0] and not counts[1]
        assert sum(rows for rows, _ in seen) == len(SEQUENCES)
        before = counts[0]
        for first in (1, 1):
            logits(llama, Pass(SEQUENCES, Intervention(from_block(llama, first, unit_direction)), 2))
        assert counts[0] == before


@pytest.mark.parametrize("layer", [0, float("inf"), 99])
def test_a_block_that_has_nothing_below_it_or_is_none_keeps_nothing(llama: WholeModel, layer: float) -> None:
    with shared_below(llama, layer, SEQUENCES):
        assert "below" not in llama.__dict__


def test_where_memory_is_short_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, llama: WholeModel) -> None:
    monkeypatch.setattr("abliterate.compute.whole.model.free", lambda device: 100)
    with shared_below(llama, 1, SEQUENCES):
        assert "below" not in llama.__dict__


def test_a_copy_that_is_off_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "_known", {})
    real = Below.entering

    def doubled(self: Below, model: Any, stream: Tensor) -> Any:
        return real(self, model, 2 * stream)

    monkeypatch.setattr(Below, "entering", doubled)
    found = reuse_of(held(CASES["llama"]).folder)
    assert found.shares and not found.skips
