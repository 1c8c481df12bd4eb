"""Is the tuner's step the same in a wider residual stream? A model is carried isometrically into other widths, where it computes the
same; there the tuner starts from the same edit, carried along, and must come to the same edit, step by step.

The start is the narrow model's own first-order edit. The wide models have its heads and its MLPs, so only the stream differs. Both ways of
turning are measured: in coordinates of drift, and (all that memory allows in the widest streams) in those of the stream itself. Run by
``scripts/bench widths``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from abliterate.choice.front import Point
from abliterate.choice.tuning.descent import Settings, descend
from abliterate.choice.tuning.examples import Examples, examples_of
from abliterate.choice.tuning.first_order import blocks_at_once, first_order
from abliterate.choice.tuning.measure import measure
from abliterate.choice.tuning.metric import coordinates
from abliterate.choice.tuning.parameters import Parameters
from abliterate.choice.tuning.state import Seen
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.model.edit import Edit
from abliterate.model.fixtures import refuser
from abliterate.prompts import Role, load_set

TESTS = Path(__file__).resolve().parents[1] / "tests"
SETS: dict[Role, str] = {"target": "censorship", "baseline": "censorship-control", "keep": "harmful", "harmless": "harmless"}


@dataclass(frozen=True)
class Compared:
    """A model of one ``width`` beside the narrow one, at each measurement.

    ``turns``: the mean angle in degrees between a direction and its start. ``left``, ``kl``: what is left of the target, and the drift.
    ``worst_cosine``: the least cosine of a direction with the narrow model's, carried along. ``strength``: the largest difference of a
    strength. ``seconds``: of the examples and the tuner.
    """

    width: int
    metric: bool
    turns: list[float]
    left: list[float]
    kl: list[float]
    worst_cosine: float
    strength: float
    seconds: float

    def said(self) -> str:
        """The line of the table."""
        turns, left = (" ".join(f"{value:.{digits}f}" for value in values) for values, digits in ((self.turns, 3), (self.left, 5)))
        way = "drift" if self.metric else "stream"
        return f"{self.width:>6} {way:>7}  {turns:24} {left:26} {1 - self.worst_cosine:8.1e} {self.strength:8.1e} {self.seconds:8.1f}"


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command ``widths``."""
    widths = commands.add_parser("widths", help="whether the tuner's step is the same in a wider residual stream")
    widths.add_argument(
        "--widths",
        type=int,
        nargs="+",
        default=[576, 2304, 4104, 8199],
        help="of the streams, multiples of its nine heads (default %(default)s)",
    )
    widths.add_argument("--limit", type=int, default=8, help="prompts of each role (default %(default)s)")
    widths.add_argument("--steps", type=int, default=3, help="of the tuner (default %(default)s)")
    widths.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    widths.set_defaults(run=bench_widths)


def bench_widths(args: argparse.Namespace) -> None:
    """Tune the small refuser in its own width and in the others, and print a line for each."""
    sys.path.insert(0, str(TESTS))
    from isometric import widen

    prompts = {role: list(load_set(name).of("train", args.limit).prompts) for role, name in SETS.items()}
    source = refuser.smollm2_refuser()
    found: list[Compared] = []
    print(f"{'width':>6} {'turned':>7}  {'degrees, by step':24} {'left of the target':26} {'1 - cos':>8} {'strength':>8} {'seconds':>8}")

    def done(width: int, metric: bool, seen: list[Seen], carry: Tensor, seconds: float) -> None:
        found.append(compared(width, metric, tuned[metric], seen, start, carry, seconds))
        print(found[-1].said(), flush=True)

    narrow = load_model(source, "float32", "cpu")
    own = examples_of(narrow, prompts)
    edits, _ = first_order(narrow, own, 0, None, 0)
    start = edits[len(edits) // 2]
    tuned: dict[bool, list[Seen]] = {}
    for metric in (False, True):
        began = time.perf_counter()
        tuned[metric] = tune(narrow, own, start, args.steps, metric)
        done(narrow.folder.d_model, metric, tuned[metric], torch.eye(narrow.folder.d_model), time.perf_counter() - began)
    del narrow
    for width in args.widths:
        with tempfile.TemporaryDirectory() as folder:
            carry = widen(source, Path(folder) / "wide", width)
            wide = load_model(Path(folder) / "wide", "float32", "cpu")
            carried = replace(start, direction=start.direction @ carry.T)
            examples = examples_of(wide, prompts)
            assert examples.target == own.target, "the wide model writes other replies"
            for metric in (False, True):
                began = time.perf_counter()
                if seen := tune(wide, examples, carried, args.steps, metric):
                    done(width, metric, seen, carry, time.perf_counter() - began)
            del wide
    if args.json:
        args.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n", encoding="utf-8")


def tune(model: WholeModel, examples: Examples, start: Edit, steps: int, metric: bool) -> list[Seen]:
    """The edits after each of the tuner's steps; with the ``metric``, directions turn in coordinates of drift. Empty if there is too little
    memory for the costs of directions."""
    if metric and model.folder.layers > blocks_at_once(model.folder.d_model):
        return []
    costs = first_order(model, examples, 0, None, 0)[1] if metric else None
    basis = None if costs is None else coordinates(costs, start.direction)
    settings = Settings(steps=steps, weights=(5.0,), batch=3, every=1, patience=steps)
    parameters = Parameters.of(start, 1.0, True, basis=basis)
    return descend(model, parameters, examples, lambda edit: measure(model, [edit], examples)[0], _cost, settings)[0]


def _cost(point: Point) -> float:
    return point.target_left + point.kl


def compared(width: int, metric: bool, own: list[Seen], seen: list[Seen], start: Edit, carry: Tensor, seconds: float) -> Compared:
    """The edits of a wide model beside those of the narrow one, which ``carry`` takes along."""
    pairs = [(n.edit.direction @ carry.T, w.edit.direction) for n, w in zip(own, seen, strict=True)]
    first = start.direction @ carry.T
    return Compared(
        width=width,
        metric=metric,
        turns=[statistics.mean(angles(first, each.edit.direction)) for each in seen],
        left=[each.point.target_left for each in seen],
        kl=[each.point.kl for each in seen],
        worst_cosine=min(float((a * b).sum(-1).min()) for a, b in pairs),
        strength=max(float((n.edit.strength - w.edit.strength).abs().max()) for n, w in zip(own, seen, strict=True)),
        seconds=seconds,
    )


def angles(start: Tensor, now: Tensor) -> list[float]:
    """The angles in degrees between the rows of two edits' directions."""
    found: list[float] = torch.rad2deg(torch.acos((start * now).sum(-1).clamp(-1, 1))).flatten().tolist()
    return found
