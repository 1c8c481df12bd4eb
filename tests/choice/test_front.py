"""The front and the preference among points of any kind."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.choice.front import WEIGHTS, Point, Preference, exceeded, pareto, prefer
from abliterate.errors import InputError

SHARES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
NATS = st.one_of(st.floats(0, 5), st.sampled_from([0.0, 0.05, 0.1, 1.0]))
POINTS = st.builds(Point, SHARES, NATS, NATS, NATS, st.sampled_from([0.0, 1.0, 8.0]))
BROKEN = st.builds(Point, SHARES, NATS, st.sampled_from([float("inf"), float("nan")]), NATS, st.just(1.0))
SOME = st.lists(POINTS, min_size=1, max_size=12)
HOW = st.sampled_from(sorted(WEIGHTS))
BOUND = st.none() | st.sampled_from([0.01, 0.1, 2.0])
INF, NAN = float("inf"), float("nan")


def _point(target_left: float = 0.0, keep_kl: float = 0.0, kl: float = 0.0, edits: float = 1.0) -> Point:
    return Point(target_left, keep_kl, kl, 0.0, edits)


@given(POINTS, POINTS)
def test_no_two_points_dominate_each_other_and_none_itself(one: Point, other: Point) -> None:
    assert not one.dominates(one)
    assert not (one.dominates(other) and other.dominates(one))


@given(SOME)
def test_whatever_is_off_the_front_is_dominated_by_something_on_it(points: list[Point]) -> None:
    on = pareto(points)
    front = [p for p, holds in zip(points, on, strict=True) if holds]
    assert front
    for point, holds in zip(points, on, strict=True):
        assert holds != any(other.dominates(point) for other in front)


@given(SOME, HOW, BOUND)
def test_the_preferred_point_is_on_the_front(points: list[Point], how: Preference, max_kl: float | None) -> None:
    chosen, _ = prefer(points, how, max_kl)
    assert pareto(points)[chosen]


@given(SOME, HOW, BOUND, NATS, NATS, NATS, st.data())
def test_a_dominated_point_never_changes_the_choice(
    points: list[Point], how: Preference, max_kl: float | None, left: float, kept: float, first: float, data: st.DataObject
) -> None:
    better = data.draw(st.sampled_from(points))
    worse = Point(min(1.0, better.target_left + left), better.keep_kl + kept, better.kl + first, 0.0, 0.0)
    at = data.draw(st.integers(0, len(points)))
    more = [*points[:at], worse, *points[at:]]
    if better.dominates(worse):
        chosen, relaxed = prefer(points, how, max_kl)
        assert prefer(more, how, max_kl) == (chosen + (chosen >= at), relaxed)


@settings(max_examples=300)
@given(SOME, BOUND)
def test_a_preference_for_removal_never_leaves_more_nor_moves_less_than_one_for_quality(points: list[Point], max_kl: float | None) -> None:
    """What exceeds the bound counts as what is left."""

    def left(point: Point) -> Fraction:
        return Fraction(point.target_left) + exceeded(point.kl, max_kl)

    removal, balanced, quality = (points[prefer(points, how, max_kl)[0]] for how in ("removal", "balanced", "quality"))
    assert left(removal) <= left(balanced) <= left(quality)
    assert removal.moved >= balanced.moved >= quality.moved


@given(SOME, HOW, st.floats(1e-3, 6))
def test_a_bound_is_exceeded_only_by_less_than_what_is_gained_and_said_to_be(points: list[Point], how: Preference, max_kl: float) -> None:
    chosen, relaxed = prefer(points, how, max_kl)
    point = points[chosen]
    assert bool(relaxed) == (point.kl > max_kl)
    for other in points:
        if point.kl > max_kl >= other.kl and other.moved <= point.moved:
            assert exceeded(point.kl, max_kl) <= Fraction(other.target_left) - Fraction(point.target_left)


@given(SOME, HOW, st.floats(1e-3, 6))
def test_what_lies_at_twice_the_bound_loses_to_whatever_lies_within_it_and_moves_no_more(
    points: list[Point], how: Preference, max_kl: float
) -> None:
    far = Point(0.0, 5.0, 2 * max_kl, 0.0, 0.0)
    near = Point(1.0, 5.0, max_kl, 0.0, 0.0)
    assert prefer([far, near, *points], how, max_kl)[0] != 0


def test_a_bound_is_no_cliff() -> None:
    over, within = _point(0.02, kl=0.11), _point(0.95, kl=0.06)
    for how in ("removal", "balanced", "quality"):
        assert prefer([within, over], how, 0.1) == (
            1,
            [
                "the chosen edit has a first-token KL of 0.11 nats, above the bound of 0.1, and leaves 2.0 % of the target; "
                "the best edit within the bound leaves 95.0 %"
            ],
        )
        assert prefer([within, _point(0.02, kl=0.3)], how, 0.1) == (0, [])


@given(NATS, NATS, st.floats(1e-3, 6))
def test_what_exceeds_a_bound_grows_from_nothing_without_a_jump(kl: float, more: float, max_kl: float) -> None:
    low, high = exceeded(kl, max_kl), exceeded(kl + more, max_kl)
    assert 0 <= low <= high <= low + Fraction(kl + more) / Fraction(max_kl) - Fraction(kl) / Fraction(max_kl)
    assert (low == 0) == (kl <= max_kl) and exceeded(kl, None) == 0


@given(SOME, HOW, st.lists(BROKEN, min_size=1, max_size=4))
def test_an_edit_that_breaks_the_outputs_is_never_preferred(points: list[Point], how: Preference, broken: list[Point]) -> None:
    assert prefer([*points, *broken], how) == prefer(points, how)
    assert prefer([*broken, *points], how)[0] == len(broken) + prefer(points, how)[0]


def test_where_every_edit_breaks_the_outputs_that_is_said() -> None:
    with pytest.raises(InputError, match="finite"):
        prefer([_point(kl=INF), _point(keep_kl=NAN)], "balanced")


def test_of_equals_the_fewest_edits_are_taken_then_the_first() -> None:
    assert prefer([_point(edits=3.0), _point(edits=2.0), _point(edits=2.0)], "balanced")[0] == 1


def test_the_weights_trade_the_share_left_against_nats() -> None:
    points = [_point(0.0, 0.1, 0.2), _point(0.2, 0.05, 0.05), _point(0.9)]
    assert [prefer(points, how)[0] for how in ("removal", "balanced", "quality")] == [0, 1, 2]
    assert prefer(points, "removal", 0.1) == (1, [])
    assert prefer(points[:2], "removal", 0.01) == (
        1,
        ["no edit has a first-token KL of at most 0.01 nats; the chosen one has 0.05"],
    )
