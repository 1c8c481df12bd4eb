"""Sampled tokens: drawn from the model's own distribution, each reply with numbers that nothing else changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blockwise import open_blockwise
from conftest import save_tiny
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from abliterate.compute.blockwise.model import BlockwiseModel
from abliterate.compute.distributed import DistributedModel, Ranks
from abliterate.compute.draws import Draw
from abliterate.compute.passes import Model, Pass
from abliterate.compute.sampler import sampled
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.compute.whole.reuse import Reuse
from abliterate.model.chat.template import encode

DRAWS = 4000
TEXTS = ["Hi", "What is the capital of France?", "Sing", "Tell me a very long story about a cat", "2+2", "你好", "Why?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model", layers=2)


@pytest.fixture(scope="module")
def model(folder: Path) -> WholeModel:
    return load_model(folder, device="cpu")


def replies(model: Model, prompts: list[list[int]], draws: list[Draw] | None, length: int = 8) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in prompts]
    for _, indices, made in model.replies([Pass(prompts, draws=draws)], length):
        for i, reply in zip(indices, made, strict=True):
            found[i] = reply
    return found


def test_numbers_are_uniform_and_do_not_go_together() -> None:
    by_key = [Draw(f"{key}").number(3) for key in range(2000)]
    by_token = [Draw("one").number(token) for token in range(2000)]
    assert all(0 <= number < 1 for number in by_key + by_token)
    assert kstest(by_key, "uniform").pvalue > 0.001 and kstest(by_token, "uniform").pvalue > 0.001
    assert abs(float(torch.corrcoef(torch.tensor([by_key, by_token]))[0, 1])) < 0.1


def test_the_numbers_of_the_rest_are_those_that_would_have_come() -> None:
    assert [Draw("a").after(5).number(i) for i in range(4)] == [Draw("a").number(i) for i in range(5, 9)]


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=9), st.floats(0, 1, exclude_max=True))
def test_a_token_is_where_the_sum_of_shares_first_exceeds_the_number(logits: list[float], number: float) -> None:
    given_logits = torch.tensor([logits], dtype=torch.float64)
    edges = torch.softmax(given_logits, -1).cumsum(-1)[0]
    token = int(sampled(given_logits, [number])[0])
    assert edges[token] > number * edges[-1] or token == len(logits) - 1
    assert token == 0 or edges[token - 1] <= number * edges[-1]


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_a_token_without_a_share_is_never_drawn(number: float) -> None:
    no = float("-inf")
    assert int(sampled(torch.tensor([[no, no, 1.0, no, 2.0, no]]), [number])[0]) in (2, 4)


def test_many_rows_are_drawn_as_each_alone() -> None:
    logits = torch.randn(100, 40, generator=torch.Generator().manual_seed(0))
    numbers = [Draw(str(row)).number(0) for row in range(100)]
    together = sampled(logits, numbers).tolist()
    assert together == [int(sampled(logits[i : i + 1], [numbers[i]])[0]) for i in range(100)]


def test_first_tokens_come_as_often_as_the_model_says(model: WholeModel) -> None:
    """Pearson's test on a model's own logits; the same counts do not fit the model at another temperature."""
    (prompt,) = encode(model.tokenizer, ["Hi"])
    made = replies(replace(model, batch_size=64), [prompt] * DRAWS, [Draw(f"first {i}") for i in range(DRAWS)], 1)
    counts = Counter(reply[0] if reply else model.tokenizer.eos_token_id for reply in made)
    logits = model.module(torch.tensor([prompt])).logits[0, -1].double()

    def p_value(temperature: float) -> float:
        expected = DRAWS * torch.softmax(logits / temperature, -1)
        common = [i for i in range(len(logits)) if expected[i] >= 5]
        rare = [i for i in range(len(logits)) if expected[i] < 5]
        seen = [counts[i] for i in common] + [sum(counts[i] for i in rare)]
        wanted = [float(expected[i]) for i in common] + [float(expected[rare].sum())]
        return float(chisquare(seen, wanted).pvalue)

    assert p_value(1.0) > 0.01
    assert p_value(1.3) < 1e-9 and p_value(0.8) < 1e-9


def test_a_sampled_reply_does_not_depend_on_what_is_beside_it(model: WholeModel) -> None:
    prompts, draws = encode(model.tokenizer, TEXTS), [Draw(text) for text in TEXTS]
    together = replies(replace(model, batch_size=3), prompts, draws)
    assert together == replies(replace(model, batch_size=7), prompts, draws)
    assert together == [replies(model, [prompt], [draw])[0] for prompt, draw in zip(prompts, draws, strict=True)]
    assert together[::-1] == replies(model, prompts[::-1], draws[::-1])
    assert together != replies(model, prompts, None)


def test_transformers_generate_draws_the_same_tokens(model: WholeModel) -> None:
    prompts, draws = encode(model.tokenizer, TEXTS), [Draw(text) for text in TEXTS]
    other = replace(model, batch_size=3)
    other.__dict__["reuse"] = Reuse()  # an architecture whose rows can't leave
    assert not other.tells(prompts, 8)
    assert replies(other, prompts, draws) == replies(model, prompts, draws)


def test_block_by_block_the_same_tokens_are_drawn(folder: Path, model: WholeModel) -> None:
    prompts, draws = encode(model.tokenizer, TEXTS), [Draw(text) for text in TEXTS]
    other = open_blockwise(folder)
    assert isinstance(other, BlockwiseModel)
    assert replies(other, prompts, draws) == replies(model, prompts, draws)


def test_each_process_gets_the_draws_of_its_own_sequences(model: WholeModel) -> None:
    draws = [Draw(text) for text in TEXTS]
    shares = DistributedModel(model, Ranks(0, 3))._shares([Pass([[i] for i in range(7)], draws=draws), Pass([[1]])])
    for rank, (drawn, plain) in enumerate(shares):
        assert [draws[ids[0]] for ids in drawn.sequences] == list(drawn.draws or ())
        assert len(drawn.sequences) == len(range(rank, 7, 3)) and plain.draws is None
