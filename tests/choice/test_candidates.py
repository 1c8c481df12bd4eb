"""The edits that compete, from hand-made activations."""

from __future__ import annotations

import pytest
import torch

from abliterate.choice.candidates import KINDS, candidates
from abliterate.config import DEFAULT_ESTIMATORS as ESTIMATORS
from abliterate.directions.activations import Activations
from abliterate.directions.collect import SetActivations
from abliterate.directions.estimate import Directions, estimate
from abliterate.directions.keys import BASELINE, HARMLESS, TARGET
from abliterate.errors import InputError
from abliterate.model.edit import Edit

LAYERS, POSITIONS, WIDTH = 12, 2, 8


def _activations(gap: float = 3.0) -> Activations:
    """Target and baseline differ along the first coordinate, most at block 5 and the second-last token; not at the embedding."""
    torch.manual_seed(0)
    size = torch.zeros(POSITIONS, LAYERS + 1)
    size[:, 1:] = 0.2 * gap
    size[1, 6] = gap

    def vectors(n: int, sign: float) -> torch.Tensor:
        noise = torch.randn(n, POSITIONS, LAYERS + 1, WIDTH) if gap else torch.ones(n, POSITIONS, LAYERS + 1, WIDTH)
        noise[:, :, 0] = 1.0
        noise[..., 0] += sign * size
        return noise

    def made(n: int, sign: float) -> SetActivations:
        v = vectors(n, sign)
        return SetActivations(v.mean(0), v.square().mean(0), v)

    train = {TARGET: made(200, 1.0), BASELINE: made(200, -1.0), HARMLESS: made(200, -1.0)}
    return Activations(train, {TARGET: vectors(50, 1.0), BASELINE: vectors(50, -1.0)}, (-1, -2), {})


@pytest.fixture(scope="module")
def directions() -> Directions:
    return estimate(_activations())


def _first_row(edit: Edit, layer: int) -> torch.Tensor:
    return edit.direction[layer, 0, 0]


def test_the_estimate_is_the_difference_of_the_train_means(directions: Directions) -> None:
    train = _activations().train
    assert torch.equal(directions.direction["difference-of-means"], train[TARGET].mean - train[BASELINE].mean)


def test_the_projected_estimate_is_orthogonal_to_the_harmless_mean(directions: Directions) -> None:
    harmless = _activations().train[HARMLESS].mean
    along = (directions.direction["projected"] * harmless).sum(-1) / harmless.norm(dim=-1)
    assert float(along.abs().max()) < 1e-5


def test_separation_is_measured_on_val_and_is_best_where_the_sets_differ(directions: Directions) -> None:
    found = directions.cohens_d["difference-of-means"]
    assert divmod(int(found.argmax()), LAYERS + 1) == (1, 6)
    assert float(directions.auc["difference-of-means"][1, 6]) > 0.99
    assert not found[:, 0].any()


def test_sets_that_do_not_differ_have_no_direction() -> None:
    with pytest.raises(InputError, match="no direction"):
        estimate(_activations(0.0))


def test_the_best_separating_block_comes_first(directions: Directions) -> None:
    first = candidates(directions, 6, 0.8, "auto", False)[0]
    assert (first.kind, first.estimator, first.layer, first.position) == ("single", "difference-of-means", 5, -2)
    assert torch.equal(first.shift, directions.direction["difference-of-means"][1, 6])
    assert first.shift_layer == 5
    torch.testing.assert_close(_first_row(first.edit, 0), first.shift / first.shift.norm())


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8, 1.0])
def test_single_directions_come_from_below_the_share_of_the_depth(directions: Directions, share: float) -> None:
    singles = [c for c in candidates(directions, 200, share, "auto", False) if c.kind == "single"]
    assert singles
    assert all(c.layer < share * LAYERS for c in singles)


@pytest.mark.parametrize("count", [2, 4, 6])
def test_half_the_singles_come_from_each_estimator(directions: Directions, count: int) -> None:
    singles = [c for c in candidates(directions, count, 0.8, "auto", False) if c.kind == "single"]
    assert [sum(c.estimator == e for c in singles) for e in ESTIMATORS] == [count // 2] * 2


def test_singles_of_one_estimator_are_no_neighbours(directions: Directions) -> None:
    for estimator in ESTIMATORS:
        layers = [c.layer for c in candidates(directions, 200, 0.8, "auto", False) if c.kind == "single" and c.estimator == estimator]
        assert all(abs(a - b) >= 2 for i, a in enumerate(layers) for b in layers[:i])


def test_per_layer_edits_leave_the_blocks_below_the_first_alone(directions: Directions) -> None:
    found = [c for c in candidates(directions, 4, 0.8, "auto", False) if c.kind == "per-layer"]
    assert [c.layer for c in found] == [3, 4, 6] * 2
    for c in found:
        assert not c.edit.strength[: c.layer].any()
        assert (c.edit.strength[c.layer :] == 1).all()
        assert c.edit.embedding == "skip"
        assert c.shift_layer >= c.layer


def test_block_l_loses_the_direction_measured_after_it(directions: Directions) -> None:
    c = next(c for c in candidates(directions, 4, 0.8, "auto", False) if c.kind == "per-layer")
    for layer in range(LAYERS):
        measured = directions.direction[c.estimator][-1 - c.position, layer + 1]
        torch.testing.assert_close(_first_row(c.edit, layer), measured / measured.norm())


@pytest.mark.parametrize(
    ("policy", "tied", "expected"), [("auto", False, "edit"), ("auto", True, "skip"), ("edit", True, "edit"), ("skip", False, "skip")]
)
def test_singles_follow_the_embedding_policy(directions: Directions, policy: str, tied: bool, expected: str) -> None:
    singles = [c for c in candidates(directions, 4, 0.8, policy, tied) if c.kind == "single"]
    assert {c.edit.embedding for c in singles} == {expected}


def test_names_are_unique(directions: Directions) -> None:
    names = [c.name for c in candidates(directions, 200, 1.0, "auto", False)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_shallow_models_have_candidates(layers: int) -> None:
    torch.manual_seed(0)
    direction = {name: torch.randn(POSITIONS, layers + 1, WIDTH) for name in ESTIMATORS}
    scores = {name: torch.rand(POSITIONS, layers + 1) for name in ESTIMATORS}
    found = candidates(Directions(direction, scores, scores), 6, 1.0, "auto", False)
    assert {"single", "per-layer"} <= {c.kind for c in found} <= set(KINDS)
    assert all(c.edit.strength.any() for c in found)


def test_a_block_without_a_direction_is_left_alone() -> None:
    torch.manual_seed(0)
    direction = {name: torch.randn(POSITIONS, LAYERS + 1, WIDTH) for name in ESTIMATORS}
    for estimate_ in direction.values():
        estimate_[:, 8] = 0
    scores = {name: torch.rand(POSITIONS, LAYERS + 1) for name in ESTIMATORS}
    found = candidates(Directions(direction, scores, scores), 200, 1.0, "auto", False)
    assert all(c.layer != 7 for c in found if c.kind == "single")
    assert all(not c.edit.strength[7].any() for c in found if c.kind == "per-layer")
