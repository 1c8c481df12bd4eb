"""Scores by cause on a tiny model, against plain forward passes."""

from __future__ import annotations

import random

import pytest
import torch
from conftest import save_tiny

from abliterate.directions.candidates import Candidate
from abliterate.directions.causal import STAYS, Yardstick, opening_logprobs, score, yardstick
from abliterate.model.forward import first_token_logprobs
from abliterate.model.hooks import ablated, added
from abliterate.model.load import LocalModel, load_model
from abliterate.model.plan import plan_from_direction


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    return load_model(save_tiny(tmp_path_factory.mktemp("causal")), "float32", "cpu")


def _ids(seed: int, *lengths: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, 250) for _ in range(length)] for length in lengths]


@pytest.fixture(scope="module")
def by(model: LocalModel) -> Yardstick:
    return yardstick(model, _ids(1, 8, 5), _ids(2, 3, 4), _ids(3, 6, 7, 8, 9, 4), _ids(5, 3, 4, 3, 2, 3), _ids(4, 9, 5, 11), 4)


def _candidate(strength: float, shift: float) -> Candidate:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(9))
    plan = plan_from_direction(vector, 4, strength, policy="skip")
    return Candidate("c", "single", "projected", -1, 1, plan, vector * shift, 1)


def test_an_edit_that_does_nothing_scores_as_the_unedited_model(model: LocalModel, by: Yardstick) -> None:
    found = score(model, _candidate(0.0, 0.0), by, 4)
    assert found.bypass == pytest.approx(float(by.base_openings.mean()), abs=1e-5)
    assert found.induce == pytest.approx(0, abs=1e-5)
    assert found.spill == 0
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.stays == float((by.base_openings > STAYS).float().mean())


def test_scores_are_those_of_plain_passes_under_the_hooks(model: LocalModel, by: Yardstick) -> None:
    candidate = _candidate(1.0, 5.0)
    found = score(model, candidate, by, 4)
    with ablated(model, candidate.plan):
        after = opening_logprobs(model, by.withheld, by.openings, 1)
        first = first_token_logprobs(model, by.harmless, 1)
    with added(model, 1, candidate.shift):
        induced = opening_logprobs(model, by.baseline, by.induced, 1)
    kl = torch.nn.functional.kl_div(first, by.base_first, log_target=True, reduction="batchmean")
    assert found.bypass == pytest.approx(float(after.mean()), abs=1e-4)
    assert found.induce == pytest.approx(float((induced - by.base_induced).mean()), abs=1e-4)
    assert found.kl == pytest.approx(float(kl), abs=1e-4)
    assert found.kl > 0.001


def test_a_model_thrown_out_of_range_has_infinite_kl(model: LocalModel, by: Yardstick) -> None:
    broken = Yardstick(**{**vars(by), "base_first": torch.full_like(by.base_first, float("nan"))})
    assert score(model, _candidate(1.0, 1.0), broken, 4).kl == float("inf")


def test_an_opening_counts_whole(model: LocalModel) -> None:
    prompts, openings = _ids(1, 8, 5), _ids(2, 3, 4)
    step = [[[*p, *o[:i]] for i in range(len(o))] for p, o in zip(prompts, openings, strict=True)]
    for found, prefixes, opening in zip(opening_logprobs(model, prompts, openings, 2), step, openings, strict=True):
        by_token = [float(first_token_logprobs(model, [prefix], 1)[0, token]) for prefix, token in zip(prefixes, opening, strict=True)]
        assert float(found) == pytest.approx(sum(by_token), abs=1e-3)
