"""The measurement of the intervals, with few data sets."""

from __future__ import annotations

import importlib.util
import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abliterate.measures.clusters import MIN_CLUSTERS

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_statistics.py"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(SCRIPT.parent))  # it imports what stands beside it
    spec = importlib.util.spec_from_file_location("bench_statistics", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_statistics"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))


def test_wilsons_mean_coverage_is_computed_to_be_near_its_level(bench: Any) -> None:
    for n in (20, 120, 400):
        assert 0.94 <= bench.wilson_coverage(n) <= 0.96


@pytest.mark.parametrize("measure", ["rate", "difference"])
def test_the_coverage_is_the_same_twice_and_lower_with_few_clusters(bench: Any, measure: str) -> None:
    few, many = (bench.coverage(measure, count, 6, 0.3, 0.3, 150, draws=300) for count in (4, 60))
    assert few.coverage < many.coverage and many.coverage > 0.88
    assert few == bench.coverage(measure, 4, 6, 0.3, 0.3, 150, draws=300)


def test_the_made_up_clusters_correlate_as_told() -> None:
    rng = np.random.default_rng(0)
    rate, correlation = 0.3, 0.4
    spread = (1 - correlation) / correlation
    own = rng.beta(rate * spread, (1 - rate) * spread, 200_000)
    pair = rng.random((2, own.size)) < own
    assert np.corrcoef(pair)[0, 1] == pytest.approx(correlation, abs=0.01) and pair.mean() == pytest.approx(rate, abs=0.01)


@pytest.mark.parametrize("way", ["rates", "latent", "whole"])
@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.3, 0.6])
def test_the_made_up_pairs_fall_and_correlate_as_told(bench: Any, way: str, correlation: float) -> None:
    pairs, sizes = bench.bench_pairs, np.full(40_000, 2)
    for setting in pairs.SETTINGS:
        rng, fall = np.random.default_rng(1), setting.margin + setting.rises
        fell, rose = pairs.WAYS[way](rng, sizes, fall, setting.rises, setting.base, correlation)
        net, n = fell - rose, sizes.sum()
        mean = net.sum() / n
        seen = ((net - 2 * mean) ** 2).mean() / (2 * ((fell + rose).sum() / n - mean**2)) - 1
        assert mean == pytest.approx(setting.margin, abs=0.005)
        assert seen == pytest.approx(correlation, abs=0.03 if setting.base != 0.5 else 0.1)


def test_the_paired_tests_keep_their_level_where_prompts_alone_do_not(bench: Any) -> None:
    pairs = bench.bench_pairs
    found = pairs.tested("30 of 6", "rates", pairs.SETTINGS[0], 0.6, 250)
    assert found == pairs.tested("30 of 6", "rates", pairs.SETTINGS[0], 0.6, 250)
    assert found.level < 0.08 and found.level_alone > 0.15 and found.p_level_alone >= found.p_level
    assert found.power > 0.3


def test_the_table_has_a_line_a_number_of_clusters_and_the_figures_are_written(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.bench_pairs, "SHAPES", {"5 of 2": (2,) * 5, "9 of 1": (1,) * 9})
    bench.run(Namespace(clusters=[3, 12], size=4, simulations=5, json=tmp_path / "f.json"))
    text = capsys.readouterr().out
    assert [line.split(" | ")[:2] for line in text.splitlines() if line.startswith(("| rate", "| difference"))] == [
        ["| rate", "3"], ["| rate", "12"], ["| difference", "3"], ["| difference", "12"]
    ]  # fmt: skip
    assert f"the report warns below {MIN_CLUSTERS}" in text
    found = json.loads((tmp_path / "f.json").read_text())
    assert set(found["wilson"]) == {"120", "400"} and len(found["bootstrap"]) == 2 * 2 * 3 * 3
    assert text.count("\n| 5 of 2 |") == text.count("\n| 9 of 1 |") == 5 and len(found["pairs"]) == 2 * 3 * 4 * 4
