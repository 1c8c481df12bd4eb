"""Directions without what keep sets have of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.directions.keep import RIDGES, KeepSpace, best_ridge, cosine, keep_columns, middle
from abliterate.directions.keys import BASELINE, HARMLESS, TARGET, GroupKey

WIDTH = 24
COLUMNS = st.integers(1, 5)
SEEDS = st.integers(0, 1000)


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(COLUMNS, SEEDS)
def test_without_a_ridge_what_is_left_is_orthogonal_to_every_keep_direction(columns: int, seed: int) -> None:
    r, K = _draw(3, WIDTH, seed=seed), _draw(3, WIDTH, columns, seed=seed + 1)
    left = KeepSpace.of(K).without(r, 0.0)
    assert float((left[:, None] @ K).abs().max()) < 1e-10
    assert bool((left.norm(dim=-1) < r.norm(dim=-1)).all())


@settings(max_examples=40, deadline=None)
@given(COLUMNS, SEEDS, st.sampled_from([0.0, 1e-3, 0.1, 1.0, 7.0]))
def test_it_is_the_formula_at_any_ridge(columns: int, seed: int, ridge: float) -> None:
    r, K = _draw(2, WIDTH, seed=seed), _draw(2, WIDTH, columns, seed=seed + 1) * 3
    for place in range(2):
        lam = ridge * float(K[place].square().sum(0).mean())
        inverse = torch.linalg.inv(K[place].T @ K[place] + lam * torch.eye(columns))
        expected = r[place] - K[place] @ inverse @ K[place].T @ r[place]
        torch.testing.assert_close(KeepSpace.of(K).without(r, ridge)[place], expected)


@settings(max_examples=40, deadline=None)
@given(COLUMNS, SEEDS, st.sampled_from([1e-3, 1.0, 1e4]))
def test_without_a_ridge_neither_order_nor_scale_of_the_keep_directions_matters(columns: int, seed: int, scale: float) -> None:
    r, K = _draw(WIDTH, seed=seed), _draw(WIDTH, columns, seed=seed + 1)
    scales = scale ** torch.linspace(-1, 1, columns, dtype=torch.float64)
    torch.testing.assert_close(KeepSpace.of((K * scales).flip(-1)).without(r, 0.0), KeepSpace.of(K).without(r, 0.0))


def test_an_endless_ridge_leaves_the_direction_as_it_is() -> None:
    r, K = _draw(WIDTH), _draw(WIDTH, 3, seed=1)
    torch.testing.assert_close(KeepSpace.of(K).without(r, 1e14), r)


def test_keep_directions_that_depend_on_each_other_count_once() -> None:
    r, K = _draw(WIDTH), _draw(WIDTH, 2, seed=1)
    twice = torch.cat([K, K @ _draw(2, 2, seed=2), torch.zeros(WIDTH, 1)], dim=1)
    torch.testing.assert_close(KeepSpace.of(twice).without(r, 0.0), KeepSpace.of(K).without(r, 0.0))


@pytest.mark.parametrize("ridge", RIDGES)
def test_where_no_keep_direction_has_a_length_all_is_left(ridge: float) -> None:
    r = _draw(2, WIDTH)
    assert torch.equal(KeepSpace.of(torch.zeros(2, WIDTH, 3)).without(r, ridge), r)


def test_columns_are_each_sets_direction_there_and_at_the_end_of_the_instruction() -> None:
    one, two = _draw(4, 3, WIDTH), _draw(4, 3, WIDTH, seed=1)
    K = keep_columns([one, two])
    assert K.shape == (4, 3, WIDTH, 4)
    for position in range(4):
        assert torch.equal(K[position], torch.stack([one[position], one[-1], two[position], two[-1]], dim=-1))


@pytest.mark.parametrize(("layers", "first", "last"), [(1, 1, 1), (2, 1, 1), (3, 1, 2), (4, 2, 3), (30, 8, 22), (32, 9, 24)])
def test_the_middle_is_the_middle_half_of_the_blocks(layers: int, first: int, last: int) -> None:
    found = list(range(layers + 1))[middle(layers + 1)]
    assert (found[0], found[-1]) == (first, last)


def test_the_ridge_is_the_one_that_keeps_target_apart_and_keep_together() -> None:
    """Keep and harmless differ along one axis, which the target's direction holds too; removing all of it is right."""
    axis, own = torch.eye(WIDTH)[0], torch.eye(WIDTH)[1]
    r = (own + axis).expand(5, WIDTH)

    def val(shift: torch.Tensor, seed: int) -> torch.Tensor:
        return (_draw(40, 1, 5, WIDTH, seed=seed) + shift).float()

    kept = GroupKey("keep", keep_set="k")
    sets = {TARGET: val(2 * own, 1), BASELINE: val(0 * own, 2), kept: val(3 * axis, 3), HARMLESS: val(0 * own, 4)}
    space = KeepSpace.of((3 * axis).expand(5, WIDTH)[..., None])
    assert best_ridge(r.float(), space, sets, ["k"]) <= 1e-2
    # Where the keep set differs from harmless nowhere, and the target along K, K is best left in.
    alike = sets | {kept: val(0 * own, 5), TARGET: val(3 * axis, 1)}
    assert best_ridge(r.float(), space, alike, ["k"]) == RIDGES[-1]


def test_without_val_vectors_of_a_keep_set_there_is_no_ridge() -> None:
    space = KeepSpace.of(_draw(5, WIDTH, 2))
    assert best_ridge(_draw(5, WIDTH).float(), space, {TARGET: torch.zeros(1, 1, 5, WIDTH)}, ["k"]) == 0.0


def test_cosines_of_parallel_opposite_and_missing_vectors() -> None:
    r = _draw(2, WIDTH)
    assert cosine(r, 3 * r).tolist() == pytest.approx([1, 1]) and cosine(r, -r).tolist() == pytest.approx([-1, -1])
    assert cosine(r, torch.zeros_like(r)).tolist() == [0, 0]
