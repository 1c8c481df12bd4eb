"""Intervals that resample whole clusters: against brute force, the normal theory of clusters, and known truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from abliterate.measures import clusters as module
from abliterate.measures.clusters import MIN_CLUSTERS, Clustered, cluster_difference, cluster_mean, cluster_rate, few_mean, too_few
from abliterate.measures.statistics import drop_upper_bound, wilson

DATA = {"a": [True, True, True, False], "b": [False, False], "c": [True, False, True], "d": [False]}


def flat(data: dict[str, list[bool]]) -> tuple[list[bool], list[str]]:
    return [v for values in data.values() for v in values], [name for name, values in data.items() for _ in values]


def every_draw(data: dict[str, list[bool]]) -> np.ndarray:
    """The rates of all equally likely draws of clusters."""
    return np.array([np.mean([v for values in draw for v in values]) for draw in itertools.product(data.values(), repeat=len(data))])


def test_the_interval_is_that_of_all_draws_of_whole_clusters() -> None:
    found = cluster_rate(*flat(DATA), draws=200_000)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(every_draw(DATA), [0.025, 0.975])), abs=1e-9)
    assert found.clusters == 4


def test_the_order_of_the_prompts_and_the_names_of_the_clusters_do_not_matter() -> None:
    holds, names = flat(DATA)
    order = np.random.default_rng(0).permutation(len(holds))
    mixed = cluster_rate([holds[i] for i in order], [f"topic {names[i]}\x00" for i in order], draws=50_000)
    found = cluster_rate(holds, names, draws=50_000)
    assert (mixed.low, mixed.high) == pytest.approx((found.low, found.high), abs=0.01)


def test_it_is_the_same_twice_and_another_with_another_seed() -> None:
    rng = np.random.default_rng(5)
    holds, names = (rng.random(300) < 0.4).tolist(), [str(i // 3) for i in range(300)]
    assert cluster_rate(holds, names) == cluster_rate(holds, names)
    assert cluster_rate(holds, names, draws=500, seed=1) != cluster_rate(holds, names, draws=500, seed=2)


def test_many_clusters_are_drawn_in_blocks_to_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    holds, names = (rng.random(400) < 0.3).tolist(), [str(i // 4) for i in range(400)]
    whole = cluster_rate(holds, names, draws=2000)
    monkeypatch.setattr(module, "_BLOCK", 700)
    assert cluster_rate(holds, names, draws=2000) == whole


def test_with_many_clusters_it_is_the_normal_interval_of_a_ratio() -> None:
    rng = np.random.default_rng(7)
    sizes = rng.integers(1, 9, 400)
    own = rng.beta(0.9, 2.1, 400)
    data = {str(i): (rng.random(size) < p).tolist() for i, (size, p) in enumerate(zip(sizes, own, strict=True))}
    found = cluster_rate(*flat(data))
    sums = np.array([sum(values) for values in data.values()])
    rate = sums.sum() / sizes.sum()
    se = np.sqrt(((sums - rate * sizes) ** 2).sum()) / sizes.sum()  # linearised ratio (Cochran 1977, section 2.11)
    assert (found.low, found.high) == pytest.approx((rate - 1.96 * se, rate + 1.96 * se), abs=0.004)


def test_prompts_that_go_together_make_the_interval_wider_than_wilsons() -> None:
    holds, names = [i % 20 < 6 for i in range(20) for _ in range(10)], [str(i) for i in range(20) for _ in range(10)]
    low, high = wilson(sum(holds), len(holds))
    found = cluster_rate(holds, names)
    assert found.high - found.low > 2.5 * (high - low)


@pytest.mark.parametrize("value", [False, True])
def test_where_nothing_varies_each_cluster_counts_as_one_observation(value: bool) -> None:
    found = cluster_rate([value] * 60, [str(i // 6) for i in range(60)])
    assert (found.low, found.high) == wilson(10 * value, 10) and found.clusters == 10


def test_clusters_with_one_and_the_same_rate_have_an_interval_of_some_width() -> None:
    found = cluster_rate([True, False] * 8, [str(i // 2) for i in range(16)])
    assert (found.low, found.high) == wilson(4, 8)


@pytest.mark.parametrize(("first", "second"), [(False, False), (True, True), (True, False), (False, True)])
def test_where_no_difference_varies_each_cluster_counts_as_one_pair(first: bool, second: bool) -> None:
    found = cluster_difference([first] * 40, [second] * 40, [str(i // 4) for i in range(40)])
    only_first, only_second = 10 * (first and not second), 10 * (second and not first)
    assert found.high == drop_upper_bound(only_first, only_second, 10, 0.025)
    assert found.low == -drop_upper_bound(only_second, only_first, 10, 0.025)
    assert found.low <= first - second <= found.high and found.high - found.low > 0.05


def test_a_difference_is_that_of_all_draws() -> None:
    second = {"a": [True, False, False, False], "b": [True, False], "c": [False, False, True], "d": [False]}
    both = list(zip(DATA.values(), second.values(), strict=True))
    draws = [np.mean([f - s for fs, ss in draw for f, s in zip(fs, ss, strict=True)]) for draw in itertools.product(both, repeat=4)]
    found = cluster_difference(flat(DATA)[0], *flat(second), draws=200_000)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=1e-9)


def test_a_difference_turned_around_is_the_same_interval_turned_around() -> None:
    rng = np.random.default_rng(9)
    first, second = (rng.random(200) < 0.6).tolist(), (rng.random(200) < 0.2).tolist()
    names = [str(i // 5) for i in range(200)]
    one, other = cluster_difference(first, second, names), cluster_difference(second, first, names)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-9)


@pytest.mark.parametrize("call", [lambda: cluster_rate([True, False], ["a", "a"]), lambda: cluster_difference([True], [False], ["a"])])
def test_one_cluster_says_nothing(call: object) -> None:
    with pytest.raises(ValueError, match="fewer than two clusters"):
        call()  # type: ignore[operator]


def test_samples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="values in"):
        cluster_rate([True, False], ["a"])
    with pytest.raises(ValueError, match="no pairs"):
        cluster_difference([True, False], [True], ["a", "b"])


def test_few_clusters_are_warned_of() -> None:
    assert too_few(MIN_CLUSTERS) is None
    assert str(MIN_CLUSTERS - 1) in str(too_few(MIN_CLUSTERS - 1)) and "less than 93 %" in str(too_few(2))
    assert "nothing can be said about others" in str(too_few(1))


@pytest.mark.parametrize(("count", "least", "most"), [(8, 0.80, 0.93), (60, 0.92, 0.975)])
def test_it_covers_the_truth_with_many_clusters_and_less_so_with_few(count: int, least: float, most: float) -> None:
    rng = np.random.default_rng(count)
    names = [str(i // 6) for i in range(6 * count)]
    held = 0
    for number in range(600):
        own = np.repeat(rng.beta(0.3 * 7 / 3, 0.7 * 7 / 3, count), 6)
        found = cluster_rate((rng.random(own.size) < own).tolist(), names, draws=400, seed=number)
        held += found.low <= 0.3 <= found.high
    assert least <= held / 600 <= most


def test_an_interval_says_how_many_clusters_it_rests_on() -> None:
    assert cluster_rate([True, False, True], ["a", "b", "c"]) == Clustered(0.0, 1.0, 3)


def test_a_mean_of_truth_values_has_the_interval_of_their_rate() -> None:
    holds, names = flat(DATA)
    assert cluster_mean([float(value) for value in holds], names) == cluster_rate(holds, names)
    alike = [True, False] * 4
    assert cluster_mean([float(value) for value in alike], list("aabbccdd")) == cluster_rate(alike, list("aabbccdd"))


def test_a_mean_moves_with_its_values_and_may_go_down_to_its_least() -> None:
    names = [str(i // 2) for i in range(20)]
    values = [((7 * i) % 10) / 10 for i in range(20)]
    plain, turned = cluster_mean(values, names), cluster_mean([2 * value - 1 for value in values], names, least=-1.0)
    assert (turned.low, turned.high) == pytest.approx((2 * plain.low - 1, 2 * plain.high - 1))
    none = cluster_mean([0.0] * 20, names, least=-1.0)
    assert -1 < none.low < 0 < none.high < 1 and none.low == pytest.approx(-none.high)


def test_a_mean_of_few_values_is_students_unless_they_happen_to_be_equal() -> None:
    found = few_mean([0.2, 0.4, 0.6, 0.8], 1000)
    assert found == pytest.approx((0.5 - 3.18245 * 0.2581989 / 2, 0.5 + 3.18245 * 0.2581989 / 2), abs=1e-4)
    assert few_mean([0.9, 0.9, 0.9], 12) == pytest.approx(wilson(10.8, 12))


def test_values_that_may_be_one_measured_again_count_once() -> None:
    values = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    once, twice = few_mean(values, 60), few_mean(values, 60, alike=2)
    assert once is not None and twice is not None and twice[0] < once[0] and twice[1] >= once[1]
    assert few_mean([0.9], 5) is None and few_mean([0.9, 0.8], 10, alike=2) is None


def test_the_interval_of_a_few_values_covers_their_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    covered = []
    for _ in range(1000):
        found = few_mean((rng.binomial(20, rng.beta(6, 4, 4)) / 20).tolist(), 20)
        covered.append(found is not None and found[0] <= 0.6 <= found[1])
    assert np.mean(covered) > 0.94
