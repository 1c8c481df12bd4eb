"""Batched forward passes give what one sequence at a time gives."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from conftest import first_token_logprobs, save_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.compute.forward import Continued, batches
from abliterate.compute.whole.model import WholeModel, load_model

PAD = 0
SEQUENCES = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=9), max_size=12)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    return load_model(save_tiny(tmp_path_factory.mktemp("forward"), request.param), "float32", "cpu")


def _ids(*lengths: int) -> list[list[int]]:
    draw = random.Random(sum(lengths))
    return [[draw.randrange(3, 250) for _ in range(length)] for length in lengths]


def _plain(model: WholeModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.module(torch.tensor([ids])).logits[0].log_softmax(-1)


@settings(max_examples=80, deadline=None)
@given(SEQUENCES, st.integers(1, 5))
def test_batches_hold_every_sequence_once_padded_on_the_left(sequences: list[list[int]], size: int) -> None:
    seen: dict[int, list[int]] = {}
    for batch in batches(sequences, PAD, size, torch.device("cpu")):
        assert len(batch.indices) <= size
        for index, ids, mask, positions in zip(batch.indices, batch.input_ids, batch.attention_mask, batch.position_ids, strict=True):
            real = int(mask.sum())
            assert not mask[:-real].any()
            assert (ids[:-real] == PAD).all()
            assert positions[-real:].tolist() == list(range(real))
            assert index not in seen
            seen[index] = ids[-real:].tolist()
    assert [seen[i] for i in range(len(sequences))] == sequences


@settings(max_examples=40, deadline=None)
@given(SEQUENCES, st.integers(1, 5))
def test_batches_grow_in_length(sequences: list[list[int]], size: int) -> None:
    widths = [batch.input_ids.shape[1] for batch in batches(sequences, PAD, size, torch.device("cpu"))]
    assert widths == sorted(widths)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_first_token_logprobs_are_those_of_each_prompt_alone(model: WholeModel, batch_size: int) -> None:
    prompts = _ids(5, 17, 1, 9, 40)
    found = first_token_logprobs(replace(model, batch_size=batch_size), prompts)
    expected = torch.stack([_plain(model, ids)[-1] for ids in prompts])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def _continued(model: WholeModel, asked: Continued) -> torch.Tensor:
    found = torch.zeros(len(asked.prompts))
    for _, indices, logits in model.logits([asked.passed()]):
        found[list(indices)] = asked.logprobs(indices, logits)
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_continuation_counts_whole_as_in_a_pass_of_its_own(model: WholeModel, batch_size: int) -> None:
    prompts, continuations = _ids(5, 17, 1, 9, 40), _ids(3, 1, 8, 20, 4)
    found = _continued(replace(model, batch_size=batch_size), Continued(prompts, continuations))
    for got, prompt, continuation in zip(found, prompts, continuations, strict=True):
        logprobs = _plain(model, prompt + continuation)[len(prompt) - 1 : -1]
        expected = sum(float(logprobs[i, token]) for i, token in enumerate(continuation))
        assert float(got) == pytest.approx(expected, abs=1e-3)


def test_no_prompts_give_no_logprobs(model: WholeModel) -> None:
    assert first_token_logprobs(model, []).numel() == 0
    assert _continued(model, Continued([], [])).shape == (0,)


def test_a_continuation_for_each_prompt_is_asked_for() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Continued(_ids(3, 4), _ids(3)).passed()
