"""Keys of activations and estimates: their text is what files hold, and no name of a keep set is taken for anything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abliterate.config import ESTIMATORS
from abliterate.directions.activations import Activations, load_activations, save_activations
from abliterate.directions.collect import SetActivations
from abliterate.directions.estimate import estimate
from abliterate.directions.keys import BASELINE, HARMLESS, TARGET, EstimateKey, GroupKey, by_language
from abliterate.prompts import Role

LAYERS, WIDTH = 4, 8
ROLES: tuple[Role, ...] = ("target", "baseline", "harmless")
LANGUAGES = st.none() | st.sampled_from(["en", "zh", "zh-Hant", "pt_BR"])


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (TARGET, "target"),
        (GroupKey("baseline", "en"), "baseline@en"),
        (GroupKey("keep"), "keep"),
        (GroupKey("keep", keep_set="harmful"), "keep/harmful"),
        (EstimateKey("projected"), "projected"),
        (EstimateKey("projected", scoped=True), "projected, scoped"),
        (EstimateKey("projected", lang="en"), "projected@en"),
        (EstimateKey("projected", scoped=True, lang="en"), "projected, scoped@en"),
    ],
    ids=str,
)
def test_a_key_is_written_as_ever_and_read_back(key: GroupKey | EstimateKey, text: str) -> None:
    assert str(key) == text and type(key).read(text) == key


@given(st.builds(GroupKey, st.sampled_from(ROLES), LANGUAGES) | st.builds(GroupKey, st.just("keep"), st.none(), st.text(min_size=1)))
def test_every_group_is_read_back_whatever_a_keep_set_is_called(key: GroupKey) -> None:
    assert GroupKey.read(str(key)) == key


@given(st.builds(EstimateKey, st.sampled_from(ESTIMATORS), st.booleans(), LANGUAGES))
def test_every_estimate_is_read_back(key: EstimateKey) -> None:
    assert EstimateKey.read(str(key)) == key


def test_versions_for_a_language_stand_by_the_estimate_of_all_languages() -> None:
    keys = [EstimateKey("lda"), *(EstimateKey("lda", scoped, lang) for scoped in (False, True) for lang in ("en", "zh"))]
    assert by_language(keys) == {
        "lda": {"en": "lda@en", "zh": "lda@zh"},
        "lda, scoped": {"en": "lda, scoped@en", "zh": "lda, scoped@zh"},
    }


def _activations(keep_set: str) -> Activations:
    draw = torch.Generator().manual_seed(0)
    shift = {key: torch.eye(WIDTH)[axis] for axis, key in enumerate((TARGET, BASELINE, HARMLESS, GroupKey("keep", keep_set=keep_set)))}
    vectors = {key: torch.randn(12, 1, LAYERS + 1, WIDTH, generator=draw) + 3 * axis for key, axis in shift.items()}
    train = {key: SetActivations(each.mean(0), each.square().mean(0), each) for key, each in vectors.items()}
    return Activations(train, {key: each + 0.1 for key, each in vectors.items()}, (-1,), {})


@pytest.mark.parametrize("name", ["a@b", "mine (val)", "keep/it", "x, scoped"])
def test_a_keep_set_may_have_any_name(name: str, tmp_path: Path) -> None:
    save_activations(_activations(name), tmp_path / "a")
    for activations in (_activations(name), load_activations(tmp_path / "a")):
        found = estimate(activations)
        assert {scoping.sets for scoping in found.scoping.values()} == {(name,)} and not found.by_language
    same = estimate(_activations("plain"))
    assert all(torch.equal(found.direction[each], same.direction[each]) for each in same.direction)
    assert {each.plain for each in found.scoping.values()} == {str(replace(EstimateKey.read(each), scoped=False)) for each in found.scoping}
