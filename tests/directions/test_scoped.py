"""Directions, candidates and their quality where something is to be kept; from hand-made activations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from abliterate.choice.candidates import at_most, candidates
from abliterate.choice.document import scoped_record
from abliterate.config import DEFAULT_ESTIMATORS, ESTIMATORS
from abliterate.directions.activations import Activations, load_activations, save_activations
from abliterate.directions.collect import SetActivations
from abliterate.directions.estimate import check_separable, estimate
from abliterate.directions.file import load_directions, save_directions
from abliterate.directions.halves import halves, stability
from abliterate.directions.keep import KeepSpace, cosine, keep_columns
from abliterate.directions.keys import BASELINE, HARMLESS, TARGET, GroupKey
from abliterate.directions.one import one_direction
from abliterate.directions.quality import measured, quality_document, sentences_on_scope, separation
from abliterate.errors import CheckError, InputError

LAYERS, POSITIONS, WIDTH = 8, 3, 16
OWN, SHARED, COMMON = torch.eye(WIDTH)[:3]


def _set(n: int, shift: torch.Tensor, seed: int) -> SetActivations:
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, POSITIONS, LAYERS + 1, WIDTH, generator=draw) * 0.5 + 3 * COMMON + shift
    vectors[:, :, 0] = 1.0
    return SetActivations(vectors.mean(0), vectors.square().mean(0), vectors[:, :1])


def _of(vectors: torch.Tensor) -> SetActivations:
    mean, moment = (each.mean(0).expand(POSITIONS, -1, -1) for each in (vectors, vectors.square()))
    return SetActivations(mean, moment, vectors)


def _val(n: int, shift: torch.Tensor, seed: int, positions: int = POSITIONS) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, positions, LAYERS + 1, WIDTH, generator=draw) * 0.5 + 3 * COMMON + shift
    vectors[:, :, 0] = 1.0
    return vectors


def _activations(own: float = 2.0) -> Activations:
    """The target is refused for what it shares with the keep set and, unless ``own`` is zero, for something of its own."""
    target, kept = own * OWN + 2 * SHARED, 2 * SHARED
    train = {
        TARGET: _set(40, target, 1),
        BASELINE: _set(40, 0 * OWN, 2),
        HARMLESS: _set(40, 0 * OWN, 3),
        GroupKey("keep"): _set(40, kept, 4),
        GroupKey("keep", keep_set="bad"): _set(40, kept, 4),
    }
    val = {
        TARGET: _val(20, target, 5),
        BASELINE: _val(20, 0 * OWN, 6),
        HARMLESS: _val(20, 0 * OWN, 7, 1),
        GroupKey("keep", keep_set="bad"): _val(20, kept, 8, 1),
    }
    return Activations(train, val, (-1, -2, -3), {"a": "b"}, ("one", "two", "three", "four") * 10)


def _without_keep(activations: Activations) -> Activations:
    train = {key: found for key, found in activations.train.items() if key.role != "keep"}
    return replace(activations, train=train, val={key: activations.val[key] for key in (TARGET, BASELINE)})


def test_without_keep_sets_nothing_is_scoped() -> None:
    directions = estimate(_without_keep(_activations()))
    assert list(directions.direction) == directions.competing == list(DEFAULT_ESTIMATORS)
    assert not directions.scoping and not sentences_on_scope(directions)
    check_separable(directions, 1.0)
    chosen = candidates(directions, 4, 0.8, "skip", False)[0]
    assert scoped_record(directions, chosen, chosen.edit, None) is None


def test_with_keep_sets_every_direction_has_a_scoped_version_and_these_compete() -> None:
    activations = _activations()
    directions = estimate(activations)
    assert directions.competing == [f"{name}, scoped" for name in DEFAULT_ESTIMATORS]
    own = activations.train[GroupKey("keep", keep_set="bad")].mean - activations.train[HARMLESS].mean
    for name in DEFAULT_ESTIMATORS:
        scoped, scoping = directions.direction[f"{name}, scoped"], directions.scoping[f"{name}, scoped"]
        plain = estimate(_without_keep(activations)).direction[name]
        assert torch.equal(directions.direction[name], plain)
        assert scoping.sets == ("bad",) and scoping.ridge <= 0.1
        left = KeepSpace.of(keep_columns([own])).without(plain, 0.0)
        torch.testing.assert_close(scoping.share[:, 1:], (left.norm(dim=-1) / plain.norm(dim=-1))[:, 1:])
        assert bool((scoped.norm(dim=-1) >= left.norm(dim=-1) - 1e-5).all())
        torch.testing.assert_close(scoping.cosine["bad"], cosine(plain, own))
        assert float(scoping.cosine["bad"][:, 1:].min()) > 0.5
        assert float(cosine(scoped, own)[:, 1:].abs().max()) < 0.15
        assert float(cosine(scoped, OWN.expand_as(scoped))[:, 1:].min()) > 0.9
    made = candidates(directions, 4, 0.8, "skip", False)
    assert {c.estimator for c in made} == set(directions.competing)
    assert len(made) <= at_most(4, LAYERS, 0)


def test_what_the_target_does_not_have_of_its_own_is_not_separable() -> None:
    directions = estimate(_activations(own=0.0))
    with pytest.raises(CheckError, match=r"^not separable here: .* at most \d+% .* --min-share 50%; .* up to bad 0\.9\d$"):
        check_separable(directions, 0.5)
    check_separable(directions, 0.0)
    check_separable(estimate(_activations()), 0.5)


def test_places_at_which_too_little_is_left_give_no_candidates() -> None:
    directions = estimate(_activations(), min_share=0.2)
    name = "projected, scoped"
    scoping = directions.scoping[name]
    share = scoping.share.clone()
    share[:, 1:4] = share[1:, :] = 0.1
    narrow = replace(directions, scoping={name: replace(scoping, share=share)})
    made = candidates(narrow, 50, 1.0, "skip", False, ("single", "interpolated", "per-layer"))
    assert made and {c.position for c in made} == {-1}
    for c in made:
        assert c.kind == "per-layer" or c.layer >= 3
        assert c.kind != "per-layer" or not c.edit.strength[:3].any()
    nowhere = replace(directions, scoping={name: replace(scoping, share=torch.full_like(share, 0.1))})
    assert candidates(nowhere, 50, 1.0, "skip", False) == []


def test_selection_json_says_how_the_chosen_direction_was_scoped() -> None:
    directions = estimate(_activations())
    for chosen in candidates(directions, 4, 0.8, "skip", False):
        found = scoped_record(directions, chosen, chosen.edit, None)
        assert found is not None and found.sets == ("bad",)
        share = directions.scoping[chosen.estimator].share[-1 - chosen.position, 1:]
        edited = [chosen.layer] if chosen.kind != "per-layer" else list(range(chosen.layer, LAYERS))
        assert found.share_left == pytest.approx(float(share[edited].mean()))
        assert found.cosine and 0 < found.share_left < 1 and 0.5 < found.cosine["bad"] < 1
        json.dumps(found.document(), allow_nan=False)


def test_every_estimator_competes_where_it_is_asked_for() -> None:
    directions = estimate(_activations(), ESTIMATORS)
    assert directions.competing == [f"{name}, scoped" for name in ESTIMATORS]
    made = candidates(directions, 4, 0.8, "skip", False)
    assert {c.estimator for c in made} == set(directions.competing)
    assert len(made) <= at_most(4, LAYERS, 0, len(ESTIMATORS))
    for c in made:
        rows = c.edit.direction
        torch.testing.assert_close(rows @ rows.mT, torch.eye(rows.shape[2]).expand(*rows.shape[:2], -1, -1), atol=1e-4, rtol=0)
    assert {c.edit.direction.shape[2] for c in made if c.estimator == "subspace, scoped"} == {3}


def test_interpolated_candidates_lie_between_the_best_block_and_a_neighbour() -> None:
    directions = estimate(_without_keep(_activations()))
    made = candidates(directions, 2, 0.8, "skip", False, ("single", "interpolated"))
    singles = {c.estimator: c for c in made if c.kind == "single"}
    between = [c for c in made if c.kind == "interpolated"]
    assert {c.estimator for c in between} == set(DEFAULT_ESTIMATORS)
    for c in between:
        assert singles[c.estimator].layer in (c.layer, c.layer + 1) and c.position == singles[c.estimator].position
        pair = directions.direction[c.estimator][-1 - c.position, c.layer + 1 : c.layer + 3]
        units = pair / pair.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(c.edit.direction[0, 0, 0], units.sum(0) / units.sum(0).norm())


def test_scoped_directions_and_subspaces_are_read_back(tmp_path: Path) -> None:
    saved = estimate(_activations(), ESTIMATORS, 0.3)
    save_directions(saved, tmp_path / "d")
    back = load_directions(tmp_path / "d")
    assert list(back.direction) == list(saved.direction) and list(back.rows) == list(saved.rows)
    assert back.competing == saved.competing
    for name, scoping in saved.scoping.items():
        found = back.scoping[name]
        assert (found.sets, found.ridge, found.min_share) == (scoping.sets, scoping.ridge, 0.3)
        assert torch.equal(found.share, scoping.share) and torch.equal(found.cosine["bad"], scoping.cosine["bad"])
    assert all(torch.equal(back.rows[name], rows) for name, rows in saved.rows.items())


def test_keep_sets_and_categories_survive_the_activations_file(tmp_path: Path) -> None:
    saved = _activations()
    save_activations(saved, tmp_path / "a")
    back = load_activations(tmp_path / "a")
    assert back.categories == saved.categories
    one, two = estimate(saved, ESTIMATORS), estimate(back, ESTIMATORS)
    assert all(torch.equal(two.direction[name], direction) for name, direction in one.direction.items())


def test_halves_share_no_prompt_and_judge_each_other() -> None:
    activations = _activations()
    both = halves(activations)
    assert both is not None
    for own, other in (both, both[::-1]):
        for name, found in own.train.items():
            assert torch.equal(other.val[name], found.vectors)
            torch.testing.assert_close(found.mean[0], found.vectors[:, 0].mean(0))
    joined = torch.cat([half.train[TARGET].vectors for half in both])
    assert sorted(joined[:, 0, 1, 0].tolist()) == sorted(activations.train[TARGET].vectors[:, 0, 1, 0].tolist())


def test_stability_is_high_where_there_is_a_direction_and_low_where_there_is_noise() -> None:
    activations = _activations()
    found = stability(activations, estimate(activations))
    assert found.keys() == set(estimate(activations).direction)
    assert float(found["difference-of-means"][1:].min()) > 0.9
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 1, LAYERS + 1, WIDTH, generator=draw)
    train = {**activations.train, TARGET: _of(noise)}
    train[BASELINE] = _of(torch.randn(40, 1, LAYERS + 1, WIDTH, generator=draw))
    lost = stability(replace(activations, train=train), estimate(replace(activations, train=train)))
    assert float(lost["difference-of-means"][1:].abs().mean()) < 0.6


def test_quality_holds_every_figure_of_every_estimate() -> None:
    activations = _activations()
    directions = estimate(activations, ESTIMATORS)
    document = quality_document(activations, directions)
    json.dumps(document.document(), allow_nan=False)
    assert document == quality_document(activations, directions)
    assert document.positions == (-1, -2, -3) and document.layers == LAYERS
    assert document.estimators.keys() == {*ESTIMATORS, *(f"{name}, scoped" for name in ESTIMATORS)}
    for name, entry in document.estimators.items():
        positions = len(entry.positions)
        assert entry.cohens_d is not None and entry.stability is not None
        assert [len(each) for each in (entry.auc, entry.norm, entry.cohens_d)] == [positions] * 3
        assert len(entry.auc[0]) == LAYERS + 1 == len(entry.stability)
        assert len(entry.cosine_keep["bad"]) == positions
        assert (entry.share_left is None) != name.endswith(", scoped")
    best = document.separation
    assert best == separation(directions) and best.estimator in directions.competing
    pca = document.pca
    assert pca is not None and pca.index == best.layer + 1
    assert [len(each) for each in (pca.target, pca.baseline)] == [60, 60] and len(pca.keep["bad"]) == 60
    means = {role: torch.tensor(getattr(pca, role)).mean(0) for role in ("target", "baseline")}
    assert bool((means["target"] >= means["baseline"]).all())
    assert 1 >= sum(pca.explained) >= pca.explained[0] >= pca.explained[1] > 0


def test_without_val_vectors_each_half_is_judged_by_the_other() -> None:
    activations = replace(_activations(), val={})
    found = measured(activations)
    assert all(len(direction) == 1 for direction in found.direction.values())
    assert float(found.auc["difference-of-means"][0, 1:].min()) > 0.95
    whole = activations.train[TARGET].mean - activations.train[BASELINE].mean
    assert torch.equal(found.direction["difference-of-means"], whole[:1])
    assert quality_document(activations, found).held_out == "halves"
    few = {name: replace(one, vectors=one.vectors[:3]) for name, one in activations.train.items()}
    with pytest.raises(InputError, match="too few prompts"):
        measured(replace(activations, train=few))


def test_estimators_that_need_harmless_prompts_say_so_or_stay_away() -> None:
    activations = _without_keep(_activations())
    bare = replace(activations, train={key: activations.train[key] for key in (TARGET, BASELINE)})
    assert "projected" not in measured(bare).direction and "lda" in measured(bare).direction
    with pytest.raises(InputError, match="projected needs the activations of harmless prompts"):
        estimate(bare)


def test_one_direction_is_that_of_a_block_of_two_or_of_all() -> None:
    directions = estimate(_activations(), (*DEFAULT_ESTIMATORS, "subspace"))
    found = directions.direction["projected, scoped"]
    position = -1 - int(directions.cohens_d["projected, scoped"][:, 1:].mean(1).argmax())
    assert torch.equal(one_direction(directions, "projected, scoped", None, None), found[-1 - position, 1:])
    torch.testing.assert_close(one_direction(directions, "projected, scoped", 3.0, -2), found[1, 4])
    between = one_direction(directions, "projected, scoped", 3.5, -2)
    assert float(cosine(between, found[1, 4])) > 0.9 < float(cosine(between, found[1, 5]))
    for asked, match in (
        (("nobody", None, None), "there is no 'nobody'"),
        (("subspace", None, None), "more than one direction"),
        (("projected", 8.0, None), "blocks 0 to 7"),
        (("projected", 3.0, -4), "has directions at -1, -2, -3"),
    ):
        with pytest.raises(InputError, match=match):
            one_direction(directions, *asked)
