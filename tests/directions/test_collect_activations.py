"""Collected activations are those of each prompt alone, whatever the batches."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny

from abliterate.compute.passes import no_progress
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.directions.collect import Group, SetActivations
from abliterate.directions.collect import collect as collect_groups
from abliterate.errors import InputError

POSITIONS = 3


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    return load_model(save_tiny(tmp_path_factory.mktemp("collect"), request.param), "float32", "cpu")


def collect(model: WholeModel, prompts: list[list[int]], positions: int, batch_size: int, advance: Any = no_progress) -> SetActivations:
    """One group, so many at once."""
    return collect_groups(replace(model, batch_size=batch_size), {"group": Group(prompts, kept=positions)}, positions, advance)["group"]


def _prompts(*lengths: int) -> list[list[int]]:
    draw = random.Random(7)
    return [[draw.randrange(3, 250) for _ in range(length)] for length in lengths]


def _alone(model: WholeModel, ids: list[int]) -> torch.Tensor:
    """[position, layer + 1, d_model] of one prompt, last token first, block by block without hooks on blocks."""
    streams: list[torch.Tensor] = []
    norm = model.module.model.norm.register_forward_pre_hook(lambda module, args: streams.append(args[0]))
    try:
        with torch.no_grad():
            states = model.module(torch.tensor([ids]), output_hidden_states=True).hidden_states
    finally:
        norm.remove()
    return torch.stack([*(s[0] for s in states[:-1]), streams[0][0]], dim=1)[-POSITIONS:].flip(0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_vectors_are_those_of_each_prompt_alone(model: WholeModel, batch_size: int) -> None:
    prompts = _prompts(12, 3, 30, 7, 7, 19)
    found = collect(model, prompts, POSITIONS, batch_size)
    expected = torch.stack([_alone(model, ids) for ids in prompts])
    torch.testing.assert_close(found.vectors, expected, atol=2e-5, rtol=1e-5)


def test_batch_size_changes_nothing_but_rounding(model: WholeModel) -> None:
    prompts = _prompts(12, 3, 30, 7, 7, 19)
    one, all_at_once = collect(model, prompts, POSITIONS, 1), collect(model, prompts, POSITIONS, 64)
    torch.testing.assert_close(one.mean, all_at_once.mean, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(one.vectors, all_at_once.vectors, atol=2e-5, rtol=1e-5)


def test_moments_are_those_of_the_vectors(model: WholeModel) -> None:
    found = collect(model, _prompts(12, 3, 30, 7), POSITIONS, 2)
    torch.testing.assert_close(found.mean, found.vectors.mean(0))
    torch.testing.assert_close(found.second_moment, found.vectors.square().mean(0))


def test_advance_hears_of_every_prompt(model: WholeModel) -> None:
    heard: list[float] = []
    collect(model, _prompts(5, 6, 7, 8, 9), POSITIONS, 2, heard.append)
    assert sum(heard) == 5


def test_a_prompt_shorter_than_the_positions_is_refused_not_padded(model: WholeModel) -> None:
    for prompts in (_prompts(2), _prompts(2, 9)):
        with pytest.raises((InputError, ValueError)):
            collect(model, prompts, POSITIONS, 4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.embed_tokens.weight", float("nan"), "the embedding's output"),
        ("model.layers.0.self_attn.o_proj.weight", float("nan"), "after block 0 "),
        ("model.layers.2.mlp.down_proj.weight", float("nan"), "after block 2 "),
        ("model.layers.3.mlp.down_proj.weight", float("inf"), "after block 3 "),
    ],
)
def test_the_first_layer_that_is_not_finite_is_named(tiny: Callable[..., Path], name: str, value: float, message: str) -> None:
    model = load_model(tiny(), "float32", "cpu")
    model.module.get_parameter(name).data.fill_(value)
    with pytest.raises(InputError, match=message):
        collect(model, _prompts(5, 9), POSITIONS, 2)
    assert not any(m._forward_hooks for m in model.module.modules())


def test_groups_and_their_parts_are_kept_apart(model: WholeModel) -> None:
    first, second = _prompts(12, 5, 8, 3), _prompts(7, 19, 4)
    both = collect_groups(model, {"first": Group(first, {"odd": [1, 3]}, POSITIONS), "second": Group(second)}, POSITIONS)
    # Other prompts in a batch change the order of sums: in float32 by a few 1e-5 of streams of this size, more or less by processor.
    for name, prompts in (("first", first), ("second", second), ("odd", [first[1], first[3]])):
        alone = collect(model, prompts, POSITIONS, 1)
        kept = both[name].vectors.shape[1]
        assert kept == (1 if name == "second" else POSITIONS)
        torch.testing.assert_close(both[name].vectors, alone.vectors[:, :kept], atol=5e-5, rtol=1e-5)
        torch.testing.assert_close(both[name].mean, alone.mean, atol=5e-5, rtol=1e-5)
        torch.testing.assert_close(both[name].second_moment, alone.second_moment, atol=5e-5, rtol=1e-5)
