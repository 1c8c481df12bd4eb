"""Paired tests over clusters: against every sign pattern, the tests of single prompts, brute force, and data of known truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t

from abliterate.measures.pairs import FEWEST, LEAST_CORRELATION, Pairs
from abliterate.measures.statistics import drop_upper_bound, mcnemar, score_upper_bound


@st.composite
def clusters(draw: st.DrawFn, most: int = 9) -> Pairs:
    """Sizes, falls and rises of a few clusters."""
    sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=most))
    fell = [draw(st.integers(0, size)) for size in sizes]
    rose = [draw(st.integers(0, size - down)) for size, down in zip(sizes, fell, strict=True)]
    return pairs(sizes, fell, rose)


def pairs(sizes: list[int], fell: list[int] | int = 0, rose: list[int] | int = 0) -> Pairs:
    full = np.zeros(len(sizes), dtype=np.int64)
    return Pairs(full + sizes, full + fell, full + rose)


def every_sign(found: Pairs) -> float:
    """The share of all patterns of signs whose sum is as far from zero as the one seen."""
    net = (found.fell - found.rose).tolist()
    sums = [abs(sum(sign * each for sign, each in zip(signs, net, strict=True))) for signs in itertools.product((1, -1), repeat=len(net))]
    return sum(each >= abs(sum(net)) for each in sums) / len(sums)


def test_pairs_are_counted_by_cluster() -> None:
    found = Pairs.of([True, True, False, True, False], [False, True, True, False, False], ["a", "b", "a", "c", "c"])
    assert [found.sizes.tolist(), found.fell.tolist(), found.rose.tolist()] == [[2, 1, 2], [1, 0, 1], [1, 0, 0]]
    assert (found.n, found.clusters, found.clustered) == (5, 3, True)
    with pytest.raises(ValueError, match="zip"):
        Pairs.of([True], [True, False], ["a", "b"])


@settings(max_examples=60, deadline=None)
@given(clusters())
def test_p_is_the_share_of_all_patterns_of_signs(found: Pairs) -> None:
    assert found.p_value() == pytest.approx(every_sign(found), rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 80).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.integers(0, 40))
def test_prompts_that_are_each_for_itself_have_the_tests_of_single_prompts(counts: tuple[int, int], stay: int) -> None:
    changed, before = counts
    n = changed + stay
    found = pairs([1] * n, [1] * before + [0] * (n - before), [0] * before + [1] * (changed - before) + [0] * stay)
    assert found.p_value() == mcnemar(before, changed - before)
    assert found.fall_bound() == drop_upper_bound(before, changed - before, n)
    assert found.rise_bound() == drop_upper_bound(changed - before, before, n)
    assert found.unmoved_bound() == drop_upper_bound(0, 0, n)


@settings(max_examples=60, deadline=None)
@given(clusters())
def test_a_bound_is_never_below_what_was_seen_nor_below_that_of_single_prompts(found: Pairs) -> None:
    down, up = int(found.fell.sum()), int(found.rose.sum())
    assert drop_upper_bound(down, up, found.n) - 1e-9 <= found.fall_bound() <= 1
    assert (down - up) / found.n - 1e-9 <= found.fall_bound()
    assert drop_upper_bound(up, down, found.n) - 1e-9 <= found.rise_bound() <= 1


@settings(max_examples=50, deadline=None)
@given(clusters(), st.randoms(use_true_random=False))
def test_neither_the_order_of_the_clusters_nor_its_turning_round_matters(found: Pairs, chance: object) -> None:
    order = np.random.default_rng(0).permutation(found.clusters)
    mixed = Pairs(found.sizes[order], found.fell[order], found.rose[order])
    turned = Pairs(found.sizes, found.rose, found.fell)
    assert mixed.fall_bound() == pytest.approx(found.fall_bound(), abs=1e-9) and mixed.p_value() == pytest.approx(found.p_value())
    assert turned.rise_bound() == found.fall_bound() and turned.p_value() == pytest.approx(found.p_value())


@pytest.mark.parametrize("sizes", [[6] * 30, [27] * 16, [2] * 91, [8] * 5, [3] * 10 + [9] * 10])
def test_without_any_change_the_bound_is_as_wide_as_the_assumed_correlation_makes_it(sizes: list[int]) -> None:
    found, n = pairs(sizes), sum(sizes)
    alike = n * n / sum(size * size for size in sizes)
    quantile = float(t.ppf(0.95, alike - 1))
    z = quantile * math.sqrt(max(1 + LEAST_CORRELATION["topic"] * (n / alike - 1), 1 / (1 - quantile**2 / alike)))
    assert found.fall_bound() == found.rise_bound() == found.unmoved_bound() == pytest.approx(score_upper_bound(0, 0, n, z))
    assert found.p_value() == 1.0


def test_what_changes_in_one_cluster_tells_less_than_what_changes_in_many() -> None:
    spread, together = pairs([6] * 30, [1] * 12 + [0] * 18), pairs([6] * 30, [6, 6] + [0] * 28)
    assert spread.fall_bound() < together.fall_bound()
    assert spread.p_value() < together.p_value()


def test_falls_that_all_come_together_make_the_bound_that_of_so_many_clusters() -> None:
    """Each cluster changes as one: its size tells nothing more."""
    whole = pairs([6] * 40, [6] * 4 + [0] * 36, [0] * 38 + [6] * 2)
    single = pairs([1] * 40, [1] * 4 + [0] * 36, [0] * 38 + [1] * 2)
    assert whole.fall_bound() == pytest.approx(single.fall_bound(), rel=0.1) and whole.fall_bound() > single.fall_bound()
    assert whole.p_value() == single.p_value()


@pytest.mark.parametrize("sizes", [[20], [500], [4] * (FEWEST - 1), [200] + [2] * 20])
def test_too_few_clusters_or_one_that_outweighs_all_claim_nothing(sizes: list[int]) -> None:
    found = pairs(sizes, [1] + [0] * (len(sizes) - 1))
    assert found.fall_bound() == found.rise_bound() == found.unmoved_bound() == 1.0 and found.p_value() == 1.0


@pytest.mark.parametrize("size", [2, 6, 40])
def test_there_is_a_bound_from_five_clusters_of_one_size_on(size: int) -> None:
    assert pairs([size] * FEWEST).unmoved_bound() < 1


@pytest.mark.parametrize(("fell", "rose"), [(4, 0), (0, 4), (2, 2)])
def test_clusters_that_change_all_alike_have_a_bound_of_some_width(fell: int, rose: int) -> None:
    found = pairs([4] * 20, fell, rose)
    seen = (fell - rose) / 4
    assert seen <= found.fall_bound() and (fell == 4 or found.fall_bound() - seen > 0.05)
    assert found.p_value() == pytest.approx(2**-19 if fell != rose else 1.0)


def test_no_pairs_are_an_error() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        Pairs.of([], [], []).fall_bound()


def test_a_thousand_clusters_are_tested_exactly() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 12, 1000)
    found = Pairs(sizes, rng.binomial(sizes, 0.6), np.zeros(1000, dtype=np.int64))
    assert 0 < found.p_value() < 1e-100


def falls(rng: np.random.Generator, sizes: np.ndarray, mean: float, correlation: float) -> np.ndarray:
    """Falls by cluster, whose own chances are beta-distributed so that two of a cluster correlate by so much."""
    chance = rng.beta(mean * (1 - correlation) / correlation, (1 - mean) * (1 - correlation) / correlation, len(sizes))
    return rng.binomial(sizes, chance)


@pytest.mark.parametrize(("size", "count"), [(6, 30), (27, 16), (2, 91)])
@pytest.mark.parametrize("correlation", [0.1, 0.3, 0.6])
def test_a_fall_of_exactly_the_margin_is_seldom_taken_for_less(size: int, count: int, correlation: float) -> None:
    rng, sizes = np.random.default_rng(size), np.full(count, size)
    none = np.zeros(count, dtype=np.int64)
    drawn = [Pairs(sizes, falls(rng, sizes, 0.05, correlation), none) for _ in range(250)]
    level = np.mean([found.fall_bound() < 0.05 for found in drawn])
    assert level <= 0.06 + 2 * (0.05 * 0.95 / 250) ** 0.5
    lost = np.array([found.fell.sum() for found in drawn])  # counting each prompt for itself, a loss of up to so many was no fall
    alone = max(k for k in range(size * count // 5) if drop_upper_bound(k, 0, size * count) < 0.05)
    assert size == 2 or (lost <= alone).mean() > 0.07


@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.3])
def test_a_fall_of_the_margin_within_categories_is_seldom_taken_for_less(correlation: float) -> None:
    rng, sizes, none = np.random.default_rng(5), np.full(16, 27), np.zeros(16, dtype=np.int64)
    drawn = [Pairs(sizes, falls(rng, sizes, 0.05, max(correlation, 1e-6)), none, "category") for _ in range(250)]
    assert np.mean([found.fall_bound() < 0.05 for found in drawn]) <= 0.06 + 2 * (0.05 * 0.95 / 250) ** 0.5


def test_the_prompts_of_sixteen_categories_can_show_that_nothing_fell() -> None:
    sizes, none = np.full(16, 27), np.zeros(16, dtype=np.int64)
    assert Pairs(sizes, none, none, "category").fall_bound() < 0.05 < Pairs(sizes, none, none, "topic").fall_bound()


def test_many_topics_show_that_nothing_fell() -> None:
    rng, sizes = np.random.default_rng(3), np.full(100, 4)
    shown = [Pairs(sizes, rng.binomial(sizes, 0.01), rng.binomial(1, 0.04, 100)).fall_bound() < 0.05 for _ in range(200)]
    assert np.mean(shown) > 0.9
