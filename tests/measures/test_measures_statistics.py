"""Intervals and tests against closed forms, published values, scipy and brute force."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest, norm

from abliterate.measures.statistics import (
    bootstrap_mean,
    discordant,
    drop_upper_bound,
    holm,
    mcnemar,
    rise_upper_bound,
    score_upper_bound,
    wilson,
)

Counts = st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int]:
    """Discordant counts and the number of pairs."""
    n = draw(st.integers(1, 120))
    before = draw(st.integers(0, n))
    return before, draw(st.integers(0, n - before)), n


@settings(max_examples=100, deadline=None)
@given(Counts, st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_is_scipys(counts: tuple[int, int], confidence: float) -> None:
    k, n = counts
    expected = binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert wilson(k, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_published_values(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=5.1e-5)


@settings(max_examples=100, deadline=None)
@given(Counts)
def test_wilson_holds_the_rate_within_0_and_1(counts: tuple[int, int]) -> None:
    k, n = counts
    low, high = wilson(k, n)
    assert 0 <= low <= k / n + 1e-12 and k / n - 1e-12 <= high <= 1


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 100_000), st.floats(0.5, 0.9999))
def test_wilson_of_none_and_of_all_ends_at_exactly_0_and_1(n: int, confidence: float) -> None:
    assert wilson(0, n, confidence)[0] == 0.0 and wilson(n, n, confidence)[1] == 1.0


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_of_no_proportion_is_an_error(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        wilson(k, n)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1)) / 2 ** (b + c)
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    assert mcnemar(b, c) == mcnemar(c, b)


@pytest.mark.parametrize("n", [120, 400])
def test_wilson_covers_19_of_20_in_the_mean_over_all_rates(n: int) -> None:
    low, high = np.array([wilson(k, n) for k in range(n + 1)]).T
    grid = np.linspace(0.01, 0.99, 491)
    held = (low[:, None] <= grid) & (high[:, None] >= grid)
    covered = (binom.pmf(np.arange(n + 1)[:, None], n, grid) * held).sum(axis=0).mean()
    assert 0.94 <= covered <= 0.96


def test_holm_gives_the_published_example() -> None:
    # The encyclopedia's example of the Holm-Bonferroni method: four hypotheses, of which the two smallest are rejected at 0.05.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_of_nothing_is_nothing() -> None:
    assert holm([]) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    places = range(len(p_values))
    subsets = [[i for i in places if bits >> i & 1] for bits in range(1, 2 ** len(p_values))]
    for place, adjusted in enumerate(holm(p_values)):
        closed = max(min(1.0, len(s) * min(p_values[i] for i in s)) for s in subsets if place in s)
        assert adjusted == pytest.approx(closed, rel=1e-12, abs=1e-300)


@settings(max_examples=60, deadline=None)
@given(st.permutations([0.001, 0.01, 0.02, 0.02, 0.5, 1.0]))
def test_holm_keeps_each_value_in_its_place(p_values: list[float]) -> None:
    known = {0.001: 0.006, 0.01: 0.05, 0.02: 0.08, 0.5: 1.0, 1.0: 1.0}
    assert holm(p_values) == pytest.approx([known[p] for p in p_values])


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_holm_of_no_probability_is_an_error(p: float) -> None:
    with pytest.raises(ValueError, match="no p-values"):
        holm([0.5, p])


@settings(max_examples=100, deadline=None)
@given(tables())
def test_the_bound_of_a_rise_is_that_of_a_drop_with_before_and_after_swapped(table: tuple[int, int, int]) -> None:
    b, c, n = table
    assert rise_upper_bound(b, c, n) == drop_upper_bound(c, b, n)
    assert rise_upper_bound(b, c, n) >= (c - b) / n - 1e-9


def test_a_rise_seen_in_the_pairs_raises_its_bound() -> None:
    bounds = [rise_upper_bound(3, new, 100) for new in (0, 3, 6, 20)]
    assert bounds == sorted(bounds) and bounds[0] < 0.05 < bounds[-1]


def test_discordant_counts_pairs_that_changed() -> None:
    assert discordant([True, True, False, False, True], [True, False, True, False, False]) == (2, 1)


def test_discordant_refuses_unpaired_samples() -> None:
    with pytest.raises(ValueError, match="zip"):
        discordant([True], [True, False])


def test_tango_gives_the_published_interval() -> None:
    # Fagerland, Lydersen, Laake 2014, Statistics in Medicine 33:2850 (Bentur's airway data): 95 % from -0.517 to -0.026.
    assert -drop_upper_bound(7, 1, 21, alpha=0.025) == pytest.approx(-0.517, abs=5e-4)
    assert drop_upper_bound(1, 7, 21, alpha=0.025) == pytest.approx(-0.026, abs=5e-4)


def inverted_score_test(b: int, c: int, n: int, alpha: float) -> float:
    """The largest difference that the score test does not reject, with the likelihood maximised numerically."""

    def statistic(delta: float) -> float:
        def loss(q: float) -> float:
            p = (q + delta, q, 1 - 2 * q - delta)
            return -sum(k * math.log(max(x, 1e-300)) for k, x in zip((b, c, n - b - c), p, strict=True) if k)

        low, high = max(0.0, -delta), (1 - delta) / 2
        found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-10})
        q = min((low, high, float(found.x)), key=loss)
        variance = n * (2 * q + delta - delta**2)
        return (b - c - n * delta) / math.sqrt(max(variance, 1e-300))

    low, high = (b - c) / n, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if statistic(middle) > -norm.ppf(1 - alpha) else (low, middle)
    return low


@pytest.mark.parametrize(("b", "c", "n"), [(3, 1, 40), (0, 0, 60), (10, 10, 50), (1, 8, 30), (0, 5, 25), (5, 0, 25), (12, 2, 50)])
def test_tango_is_the_inverted_score_test(b: int, c: int, n: int) -> None:
    assert drop_upper_bound(b, c, n) == pytest.approx(inverted_score_test(b, c, n, 0.05), abs=2e-5)


@settings(max_examples=150, deadline=None)
@given(tables())
def test_the_bound_lies_between_the_observed_drop_and_one(table: tuple[int, int, int]) -> None:
    b, c, n = table
    assert (b - c) / n - 1e-9 <= drop_upper_bound(b, c, n) <= 1


@settings(max_examples=100, deadline=None)
@given(tables())
def test_one_more_refusal_lost_raises_the_bound(table: tuple[int, int, int]) -> None:
    b, c, n = table
    if b + c < n:
        assert drop_upper_bound(b + 1, c, n) > drop_upper_bound(b, c, n) - 1e-9


@settings(max_examples=60, deadline=None)
@given(tables(), st.floats(0.01, 0.4), st.floats(0.01, 0.4))
def test_a_stricter_level_gives_a_higher_bound(table: tuple[int, int, int], one: float, two: float) -> None:
    strict, loose = sorted((one, two))
    assert drop_upper_bound(*table, alpha=strict) >= drop_upper_bound(*table, alpha=loose) - 1e-9


def test_more_pairs_without_change_lower_the_bound() -> None:
    bounds = [drop_upper_bound(0, 0, n) for n in (10, 50, 100, 500)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] > 0


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000))
def test_the_bound_at_the_ends_of_what_can_be_seen(n: int) -> None:
    assert drop_upper_bound(n, 0, n) == 1.0
    assert -1 < drop_upper_bound(0, n, n) < 1
    z2 = float(norm.ppf(0.95)) ** 2
    assert drop_upper_bound(0, 0, n) == pytest.approx(z2 / (n + z2), abs=1e-9)  # never zero, which is what was seen


def test_a_quantile_without_end_claims_nothing() -> None:
    assert score_upper_bound(0, 0, 50, math.inf) == 1.0
    assert score_upper_bound(3, 1, 40, float(norm.ppf(0.95))) == drop_upper_bound(3, 1, 40)


def test_no_pairs_have_no_bound() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        drop_upper_bound(0, 0, 0)


@pytest.mark.parametrize(("lost", "won"), [(0.05, 0.02), (0.1, 0.05), (0.2, 0.2), (0.3, 0.1), (0.05, 0.05)])
def test_the_one_sided_bound_covers_the_true_drop(lost: float, won: float) -> None:
    bound = functools.cache(drop_upper_bound)
    samples = np.random.default_rng(0).multinomial(80, [lost, won, 1 - lost - won], size=3000)
    assert np.mean([bound(int(b), int(c), 80) >= lost - won for b, c, _ in samples]) >= 0.93


def test_bootstrap_is_the_normal_interval_for_many_values() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, 400)
    low, high = bootstrap_mean(values.tolist())
    half = 1.96 * float(values.std()) / 20
    assert (low, high) == pytest.approx((float(values.mean()) - half, float(values.mean()) + half), abs=0.01)


@pytest.mark.parametrize("value", [0.5, 0.1, 1 / 3, 0.0])
def test_bootstrap_of_equal_values_is_a_point(value: float) -> None:
    assert bootstrap_mean([value] * 7) == (value, value)


def test_bootstrap_is_the_same_twice() -> None:
    assert bootstrap_mean([0.1, 0.9, 0.4]) == bootstrap_mean([0.1, 0.9, 0.4])


def test_bootstrap_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])
