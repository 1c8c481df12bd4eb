"""Scores by cause on a tiny model, against plain forward passes."""

from __future__ import annotations

import math
import random

import pytest
import torch
from conftest import first_token_logprobs, save_tiny

from abliterate.choice.candidates import Candidate
from abliterate.choice.scores import Yardstick, score_all, scoring_work
from abliterate.compute.forward import Continued
from abliterate.compute.hooks import ablated, added
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.model.edit import edit_from_direction


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    return load_model(save_tiny(tmp_path_factory.mktemp("causal")), "float32", "cpu")


def _ids(seed: int, *lengths: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, 250) for _ in range(length)] for length in lengths]


BY = Yardstick(Continued(_ids(1, 8, 5), _ids(2, 3, 4)), Continued(_ids(3, 6, 7, 8, 9, 4), _ids(5, 3, 4, 3, 2, 3)), _ids(4, 9, 5, 11))


def _logprobs(model: WholeModel, asked: Continued) -> torch.Tensor:
    found = torch.zeros(len(asked.prompts))
    for _, indices, logits in model.logits([asked.passed()]):
        found[list(indices)] = asked.logprobs(indices, logits)
    return found


def _ratio(nats: torch.Tensor) -> float:
    """The mean likelihood ratio, each at most 1."""
    return sum(min(1.0, math.exp(x)) for x in nats.tolist()) / len(nats)


def _candidate(strength: float, shift: float, seed: int = 9) -> Candidate:
    vector = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    edit = edit_from_direction(vector, 4, strength, policy="skip")
    return Candidate("c", "single", "projected", -1, 1, edit, vector * shift, 1)


def test_an_edit_that_does_nothing_scores_as_the_unedited_model(model: WholeModel) -> None:
    (found,), base = score_all(model, [_candidate(0.0, 0.0)], BY)
    assert base == pytest.approx(float(_logprobs(model, BY.target).mean()), abs=1e-5)
    assert found.bypass == pytest.approx(base, abs=1e-5)
    assert found.induce == pytest.approx(0, abs=1e-5)
    assert found.spill == 0
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.stays == pytest.approx(1, abs=1e-5)  # whatever the likelihood itself is


def test_scores_are_those_of_plain_passes_under_the_hooks(model: WholeModel) -> None:
    tried = [_candidate(1.0, 5.0), _candidate(1.0, 2.0, seed=10)]
    heard: list[float] = []
    scores, _ = score_all(model, tried, BY, heard.append)
    assert sum(heard) == scoring_work(2, BY)
    base_first, base_induced = first_token_logprobs(model, BY.harmless), _logprobs(model, BY.baseline)
    base_target = _logprobs(model, BY.target)
    for candidate, found in zip(tried, scores, strict=True):
        with ablated(model, candidate.edit):
            after, spilt, first = _logprobs(model, BY.target), _logprobs(model, BY.baseline), first_token_logprobs(model, BY.harmless)
        with added(model, 1, candidate.shift):
            induced = _logprobs(model, BY.baseline)
        kl = torch.nn.functional.kl_div(first, base_first, log_target=True, reduction="batchmean")
        assert found.bypass == pytest.approx(float(after.mean()), abs=1e-4)
        own = base_target.mean()
        assert found.stays == pytest.approx(_ratio(after - base_target), abs=1e-4)
        assert found.induce == pytest.approx(_ratio(induced - own) - _ratio(base_induced - own), abs=1e-4)
        assert found.spill == pytest.approx(_ratio(spilt - own) - _ratio(base_induced - own), abs=1e-4)
        assert found.kl == pytest.approx(float(kl), abs=1e-4)
        assert found.kl > 0.001


def test_a_model_thrown_out_of_range_has_infinite_kl(model: WholeModel) -> None:
    broken = edit_from_direction(torch.ones(32), 4, policy="skip")
    broken.direction.fill_(float("nan"))
    (found,), _ = score_all(model, [Candidate("c", "single", "projected", -1, 1, broken, torch.ones(32), 1)], BY)
    assert found.kl == float("inf")
