"""A direction a language: groups, estimates and the edit that removes their span."""

from __future__ import annotations

import torch

from abliterate.choice.candidates import candidates
from abliterate.directions.activations import Activations
from abliterate.directions.collect import SetActivations
from abliterate.directions.estimate import estimate
from abliterate.directions.groups import MIN_PER_LANGUAGE, by_language
from abliterate.directions.keys import BASELINE, HARMLESS, TARGET, GroupKey
from abliterate.prompts import Prompt

LAYERS, WIDTH = 6, 16


def activations_of(n: int, shift: torch.Tensor, seed: int) -> SetActivations:
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, 2, LAYERS + 1, WIDTH, generator=draw) * 0.1 + 1 + shift
    return SetActivations(vectors.mean(0), vectors.square().mean(0), vectors)


def prompts(role: str, langs: list[str]) -> list[Prompt]:
    return [Prompt(f"{role}-{i}", f"{role} {i}", lang) for i, lang in enumerate(langs)]


def bilingual() -> Activations:
    """Target prompts differ from baseline along axis 0 in English and along axis 1 in Chinese."""
    langs = ["en", "zh"] * MIN_PER_LANGUAGE
    shift = torch.zeros(len(langs), 1, 1, WIDTH)
    shift[0::2, ..., 0] = 3.0
    shift[1::2, ..., 1] = 3.0
    train = {
        TARGET: activations_of(len(langs), shift, 1),
        BASELINE: activations_of(len(langs), torch.zeros(1), 2),
        HARMLESS: activations_of(8, torch.zeros(1), 3),
    }
    for role, parts in by_language({"target": prompts("t", langs), "baseline": prompts("b", langs)}).items():
        for part, chosen in parts.items():
            vectors = train[GroupKey(role)].vectors[chosen]
            train[part] = SetActivations(vectors.mean(0), vectors.square().mean(0), vectors)
    val = {TARGET: activations_of(8, shift[:8], 4).vectors, BASELINE: activations_of(8, torch.zeros(1), 5).vectors}
    return Activations(train, val, (-1, -2), {})


def test_each_language_has_its_own_prompts() -> None:
    langs = ["en", "zh"] * MIN_PER_LANGUAGE
    found = by_language({"target": prompts("t", langs), "baseline": prompts("b", langs[1:] + langs[:1])})
    evens, odds = list(range(0, len(langs), 2)), list(range(1, len(langs), 2))
    assert found == {
        "target": {GroupKey("target", "en"): evens, GroupKey("target", "zh"): odds},
        "baseline": {GroupKey("baseline", "en"): odds, GroupKey("baseline", "zh"): evens},
    }


def test_one_language_or_too_few_prompts_of_the_other_give_no_groups() -> None:
    english = {"target": prompts("t", ["en"] * 20), "baseline": prompts("b", ["en"] * 20)}
    few = {"target": prompts("t", ["en"] * 18 + ["zh"] * 2), "baseline": prompts("b", ["en"] * 18 + ["zh"] * 2)}
    assert by_language(english) == {} and by_language(few) == {}


def test_the_edit_of_a_bilingual_target_removes_both_directions() -> None:
    directions = estimate(bilingual())
    assert {tuple(versions) for versions in directions.by_language.values()} == {("en", "zh")}
    assert directions.by_language["projected"] == {"en": "projected@en", "zh": "projected@zh"}
    made = [c for c in candidates(directions, 2, 0.8, "skip", False) if "a language" in c.name]
    assert made
    for candidate in made:
        rows = candidate.edit.direction[-1, 0]
        assert rows.shape == (2, WIDTH)
        torch.testing.assert_close(rows @ rows.T, torch.eye(2), atol=1e-5, rtol=0)
        for lang in ("en", "zh"):
            own = directions.direction[f"{candidate.estimator}@{lang}"][-1 - candidate.position, -1]
            inside = (rows.T @ (rows @ own)).norm() / own.norm()
            assert float(inside) > 0.9999


def test_a_monolingual_target_has_no_such_edit() -> None:
    both = bilingual()
    plain = Activations({k: v for k, v in both.train.items() if k.lang is None}, both.val, both.positions, {})
    assert not [c for c in candidates(estimate(plain), 2, 0.8, "skip", False) if "a language" in c.name]
