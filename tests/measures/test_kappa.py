"""Kappa and corrected rates: published values, independent computation, known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from abliterate.measures.agreement import cohens_kappa, corrected_rate, kappa

Table = list[list[int]]
# PROC FREQ of the SAS/STAT manual, two dermatologists: kappa 0.3449, standard error 0.0724, 95 % from 0.2030 to 0.4868.
SKIN: Table = [[10, 4, 1, 0], [5, 10, 12, 2], [2, 4, 12, 5], [0, 2, 6, 13]]
# Fleiss, Levin and Paik 2003, table 18.1: kappa 0.68.
DIAGNOSES: Table = [[75, 1, 4], [5, 4, 1], [0, 0, 10]]


def pairs(table: Table) -> list[tuple[int, int]]:
    return [(i, j) for i, row in enumerate(table) for j, k in enumerate(row) for _ in range(k)]


def value(p: np.ndarray) -> float:
    """Kappa of a table of shares, straight from its definition."""
    chance = float((p.sum(0) * p.sum(1)).sum()) / float(p.sum()) ** 2
    return (float(np.trace(p)) / float(p.sum()) - chance) / (1 - chance)


def test_kappa_gives_the_published_values() -> None:
    found = kappa(pairs(SKIN))
    assert found is not None and found.n == 88
    assert (found.kappa, found.se, found.low, found.high) == pytest.approx((0.3449, 0.0724, 0.2030, 0.4868), abs=5e-5)
    assert cohens_kappa(pairs(DIAGNOSES)) == pytest.approx(0.68, abs=5e-3)


@pytest.mark.parametrize("table", [SKIN, DIAGNOSES, [[20, 5], [10, 15]], [[3, 9], [14, 2]]])
def test_the_standard_error_is_the_delta_method_with_numerical_slopes(table: Table) -> None:
    counts = np.array(table, dtype=float)
    n, step = counts.sum(), 1e-6
    p = counts / n
    slopes = np.zeros_like(p)
    for place in np.ndindex(*p.shape):
        moved = np.zeros_like(p)
        moved[place] = step
        slopes[place] = (value(p + moved) - value(p - moved)) / (2 * step)
    variance = ((p * slopes**2).sum() - (p * slopes).sum() ** 2) / n
    found = kappa(pairs(table))
    assert found is not None
    assert found.kappa == pytest.approx(value(counts)) and found.se == pytest.approx(math.sqrt(variance), rel=1e-6)


def test_kappa_is_1_where_judges_always_agree_and_0_where_they_are_independent() -> None:
    agree = kappa(pairs([[7, 0], [0, 5]]))
    assert agree is not None and (agree.kappa, agree.se, agree.high) == (1.0, 0.0, 1.0)
    assert cohens_kappa(pairs([[8, 4], [4, 2]])) == pytest.approx(0.0, abs=1e-12)


def test_kappa_does_not_mind_who_is_first() -> None:
    one, other = kappa(pairs(SKIN)), kappa([(b, a) for a, b in pairs(SKIN)])
    assert one is not None and other is not None
    assert (one.kappa, one.se) == pytest.approx((other.kappa, other.se))


@pytest.mark.parametrize("given", [[], [("a", "a")] * 5])
def test_kappa_is_not_defined_without_two_labels(given: list[tuple[str, str]]) -> None:
    assert kappa(given) is None and cohens_kappa(given) is None


def test_a_perfect_judges_rate_stays_as_it_is() -> None:
    found = corrected_rate(30, 100, 10**7, 10**7, 10**7, 10**7)
    assert found is not None and found[0] == pytest.approx(0.3)
    # its interval is then that of Agresti and Coull 1998, which adds z² observations
    n, z = 100 + 1.959964**2, 1.959964
    p = (30 + z * z / 2) / n
    half = z * math.sqrt(p * (1 - p) / n)
    assert found[1] == pytest.approx((p - half, p + half), abs=1e-5)


@pytest.mark.parametrize(("share", "se", "sp"), [(0.0, 0.9, 0.8), (0.25, 0.75, 0.9), (1.0, 0.6, 0.95)])
def test_the_corrected_rate_is_the_share_that_gives_what_was_found(share: float, se: float, sp: float) -> None:
    seen = share * se + (1 - share) * (1 - sp)
    found = corrected_rate(round(seen * 10**6), 10**6, round(se * 10**6), 10**6, round(sp * 10**6), 10**6)
    assert found is not None and found[0] == pytest.approx(share, abs=1e-5)
    assert found[1][0] <= share <= found[1][1] and found[1][1] - found[1][0] < 0.01


def test_with_many_counts_the_interval_is_that_of_a_parametric_bootstrap() -> None:
    rng = np.random.default_rng(0)
    n, m = 4000, 3000
    k, found, spared = 1500, 2600, 2800
    p, se, sp = (rng.binomial(size, count / size, 200_000) / size for count, size in ((k, n), (found, m), (spared, m)))
    drawn = np.quantile((p + sp - 1) / (se + sp - 1), [0.025, 0.975])
    made = corrected_rate(k, n, found, m, spared, m)
    assert made is not None and made[1] == pytest.approx(tuple(drawn), abs=0.002)


def test_with_few_counts_the_interval_is_shifted_as_published() -> None:
    # Lang and Reiczigel 2014, written out: 12 found of 260; 50 of 100 of the true ones, 199 of 200 of the others.
    z = 1.959964
    p, se, sp = (12 + z * z / 2) / (260 + z * z), 51 / 102, 200 / 202
    share = (p + sp - 1) / (se + sp - 1)
    a, b, c = p * (1 - p) / (260 + z * z), se * (1 - se) / 102, sp * (1 - sp) / 202
    half = z * math.sqrt(a + share**2 * b + (1 - share) ** 2 * c) / (se + sp - 1)
    shift = 2 * z * z * (share * b - (1 - share) * c)
    assert abs(shift) > 1e-3
    found = corrected_rate(12, 260, 50, 100, 199, 200)
    assert found is not None
    assert found[0] == pytest.approx((12 / 260 - 0.005) / 0.495)
    assert found[1] == pytest.approx((share + shift - half, share + shift + half), abs=1e-6)


def test_a_judge_that_is_known_less_well_makes_the_interval_wider() -> None:
    widths = []
    for known in (20, 60, 200, 2000):
        found = corrected_rate(80, 200, known * 9 // 10, known, known * 9 // 10, known)
        assert found is not None
        widths.append(found[1][1] - found[1][0])
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize(("se", "sp", "known"), [(0.9, 0.95, 60), (0.8, 0.9, 100), (0.74, 0.99, 140)])
def test_the_corrected_interval_covers_the_true_share(share: float, se: float, sp: float, known: int) -> None:
    rng = np.random.default_rng([known, round(100 * share)])
    held = 0
    for _ in range(800):
        seen = rng.binomial(150, share * se + (1 - share) * (1 - sp))
        found = corrected_rate(int(seen), 150, int(rng.binomial(known, se)), known, int(rng.binomial(known, sp)), known)
        assert found is not None
        held += found[1][0] <= share <= found[1][1]
    assert held / 800 >= 0.92


@pytest.mark.parametrize("given", [(0, 0, 9, 10, 9, 10), (5, 10, 0, 0, 9, 10), (5, 10, 5, 10, 5, 10), (5, 10, 2, 10, 5, 10)])
def test_what_can_not_be_told_is_none(given: tuple[int, int, int, int, int, int]) -> None:
    assert corrected_rate(*given) is None


@pytest.mark.parametrize("given", [(11, 10, 9, 10, 9, 10), (5, 10, -1, 10, 9, 10), (5, 10, 9, 10, 12, 10)])
def test_what_is_no_proportion_is_an_error(given: tuple[int, int, int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        corrected_rate(*given)
