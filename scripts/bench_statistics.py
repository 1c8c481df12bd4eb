"""How often the intervals of the report hold the truth, on made-up data of which the truth is known.

``statistics``: the mean coverage of the 95 % Wilson interval over a grid of rates (computed, not drawn), and the coverage of the
cluster bootstrap, of a rate and of a paired difference, by the number of clusters and the correlation within them. Where it is
too low, ``abliterate.measures.clusters.MIN_CLUSTERS`` makes the report say so. Then the paired tests: bench_pairs.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bench_pairs
import numpy as np
from scipy.stats import binom

from abliterate.measures.clusters import MIN_CLUSTERS, cluster_difference, cluster_rate
from abliterate.measures.statistics import wilson

WILSON_N = (120, 400)
GRID = np.linspace(0.01, 0.99, 981)
RATES = (0.1, 0.3, 0.5)  # the bootstrap treats p and 1 - p alike
CORRELATIONS = (0.1, 0.3, 0.6)
ENOUGH = 0.93
COUNTS = [5, 10, 15, 20, 25, 30, 40, 60]
MEASURES = ("rate", "difference")


@dataclass(frozen=True)
class Coverage:
    """How often intervals held the truth, of ``simulations`` data sets alike."""

    measure: str
    clusters: int
    size: int
    rate: float
    correlation: float
    simulations: int
    coverage: float


def wilson_coverage(n: int) -> float:
    """Mean coverage over the grid of rates: for each the chance of the counts whose interval holds it, summed."""
    low, high = np.array([wilson(k, n) for k in range(n + 1)]).T
    held = (low[:, None] <= GRID) & (high[:, None] >= GRID)
    return float((binom.pmf(np.arange(n + 1)[:, None], n, GRID) * held).sum(axis=0).mean())


def coverage(
    measure: str, clusters: int, size: int, rate: float, correlation: float, simulations: int, draws: int = 1000, seed: int = 0
) -> Coverage:
    """Of the 95 % cluster bootstrap. Each cluster's own rate is drawn from a beta distribution with the mean ``rate`` and so
    that two of its members correlate by ``correlation``; the second of a pair holds half as often as the first, in each cluster.
    """
    rng = np.random.default_rng([seed, clusters, size, round(1000 * rate), round(1000 * correlation)])
    spread = (1 - correlation) / correlation
    names = np.repeat(np.arange(clusters), size).astype(str).tolist()
    truth = rate if measure == "rate" else rate / 2
    held = 0
    for number in range(simulations):
        own = np.repeat(rng.beta(rate * spread, (1 - rate) * spread, clusters), size)
        first = (rng.random(own.size) < own).tolist()
        if measure == "rate":
            found = cluster_rate(first, names, draws=draws, seed=number)
        else:
            found = cluster_difference(first, (rng.random(own.size) < own / 2).tolist(), names, draws=draws, seed=number)
        held += found.low <= truth <= found.high
    return Coverage(measure, clusters, size, rate, correlation, simulations, held / simulations)


def measured(counts: Sequence[int], size: int, simulations: int) -> list[Coverage]:
    """Every number of clusters, rate and correlation."""
    return [
        coverage(measure, count, size, rate, correlation, simulations)
        for measure in MEASURES
        for count in counts
        for rate in RATES
        for correlation in CORRELATIONS
    ]


def mean(found: Sequence[Coverage], measure: str, clusters: int) -> float:
    """Over rates and correlations."""
    return float(np.mean([c.coverage for c in found if (c.measure, c.clusters) == (measure, clusters)]))


def table(found: Sequence[Coverage], wilsons: dict[int, float]) -> str:
    """The figures for people: a line a number of clusters."""
    columns = " | ".join(f"correlation {c:g}" for c in CORRELATIONS)
    lines = [f"Wilson 95 %, mean coverage over rates from 0.01 to 0.99: n = {n}: {100 * value:.2f} %" for n, value in wilsons.items()]
    lines += ["", f"| measure | clusters | mean | lowest | {columns} |", "|---" * 7 + "|"]
    for measure in MEASURES:
        for clusters in dict.fromkeys(c.clusters for c in found):
            alike = [c for c in found if (c.measure, c.clusters) == (measure, clusters)]
            parts = [np.mean([c.coverage for c in alike if c.correlation == correlation]) for correlation in CORRELATIONS]
            shown = " | ".join(f"{100 * value:.1f} %" for value in (mean(found, measure, clusters), min(c.coverage for c in alike), *parts))
            lines.append(f"| {measure} | {clusters} | {shown} |")
    short = [n for n in dict.fromkeys(c.clusters for c in found) if min(mean(found, measure, n) for measure in MEASURES) < ENOUGH]
    said = f"below {100 * ENOUGH:.0f} % in the mean with {', '.join(map(str, short)) or 'no number of'} clusters"
    return "\n".join([*lines, "", f"{said}; the report warns below {MIN_CLUSTERS}"])


def run(args: argparse.Namespace) -> None:
    """All that is asked for, as a table and, where asked for, as JSON."""
    wilsons = {n: wilson_coverage(n) for n in WILSON_N}
    found = measured(args.clusters, args.size, args.simulations)
    print(table(found, wilsons), flush=True)
    pairs = bench_pairs.measured(args.simulations)
    print(bench_pairs.table(pairs))
    if args.json is not None:
        figures = {"wilson": wilsons, "bootstrap": [asdict(c) for c in found], "pairs": [asdict(each) for each in pairs]}
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def counts(text: str) -> list[int]:
    """``10,30``: numbers of clusters."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 2:
        raise argparse.ArgumentTypeError("at least 2 clusters")
    return found


def add_to(commands: Any) -> None:
    """The command ``statistics``."""
    command = commands.add_parser("statistics", help="how often the report's intervals hold the truth")
    command.add_argument("--clusters", type=counts, default=COUNTS, metavar="N,...", help=f"tried (default {','.join(map(str, COUNTS))})")
    command.add_argument("--size", type=int, default=6, help="prompts of a cluster (default %(default)s, as in the bundled sets)")
    command.add_argument("--simulations", type=int, default=2000, help="data sets of each kind (default %(default)s)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    command.set_defaults(run=run)
