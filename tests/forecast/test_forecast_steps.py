"""What a run asks of its model is counted as it happens: sweeps against those of real runs, prompts against the sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from abliterate.choice.candidates import at_most, candidates
from abliterate.commands.run import run
from abliterate.compute.blockwise.blocks import Blocks
from abliterate.compute.memory import Holding
from abliterate.config import RunConfig
from abliterate.directions.activations import Activations
from abliterate.directions.collect import SetActivations
from abliterate.directions.estimate import estimate
from abliterate.directions.keys import BASELINE, HARMLESS, TARGET, GroupKey
from abliterate.forecast.steps import Step, read_prompts, run_steps, sweeps_of
from abliterate.model.folder import open_folder

Tiny = Callable[..., Path]
WORDS = ["stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror", "harbour", "lantern", "meadow"]


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, Any]:
    made = {}
    for role, start in (("target", "Burn the"), ("baseline", "Draw the"), ("harmless", "Name a")):
        path = tmp_path / f"{role}.txt"
        path.write_text("".join(f"{start} {word}.\n" for word in WORDS), encoding="utf-8")
        made[role] = str(path) if role == "harmless" else (str(path),)
    return made


def planned(config: RunConfig, path: Path) -> list[Step]:
    folder = open_folder(path)
    return run_steps(config, read_prompts(config, folder), folder.layers)


@pytest.mark.parametrize("ends", [False, True], ids=["no reply ends early", "replies may end early"])
def test_a_real_run_reads_its_weights_as_often_as_planned(
    ends: bool, tiny: Tiny, sets: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps = 0
    in_turn = Blocks.in_turn

    def counted(self: Blocks) -> Iterator[Any]:
        nonlocal sweeps
        sweeps += "trial" not in str(self.folder.path)
        return in_turn(self)

    monkeypatch.setattr(Blocks, "in_turn", counted)
    monkeypatch.setattr("abliterate.compute.session.holding_of", lambda *_: Holding(1, torch.float32, whole=False, peak=0, tokens=100))
    if not ends:
        monkeypatch.setattr("abliterate.compute.session.end_ids", lambda *_: frozenset())
    config = RunConfig(model=str(tiny(shards="20KB", says="I won't.")), max_new_tokens=3, candidates=2, **sets)
    run(config, tmp_path / "run")
    steps = planned(config, Path(config.model))
    assert sweeps <= sweeps_of(steps)
    if not ends:
        assert sweeps == sweeps_of(steps) == 1 + 16 + 1 + 1 + 1 + 1 + 16 + 2 * 3 + 2 + 1


def test_long_replies_are_cut_where_each_token_costs_a_sweep(tiny: Tiny, sets: dict[str, Any]) -> None:
    config = RunConfig(model=str(tiny()), max_new_tokens=500, **sets)
    assert max(step.sweeps for step in planned(config, Path(config.model))) == 16


def test_replies_that_another_engine_writes_cost_no_sweep(tiny: Tiny, sets: dict[str, Any]) -> None:
    model = tiny()
    here, elsewhere = (
        planned(RunConfig(model=str(model), engine=engine, **sets), model) for engine in ("transformers", "http://localhost:8000/v1")
    )
    assert sweeps_of(here) - sweeps_of(elsewhere) == 32
    assert [step.name for step in elsewhere] == [step.name for step in here if "replies of the" not in step.name]


def test_samples_are_planned_for_prompts_with_facts(tiny: Tiny, sets: dict[str, Any]) -> None:
    """In a pass of their own, which reads all weights again where they are read block by block."""
    path, given = tiny(), {**sets, "target": ("censorship",), "baseline": ("censorship-control",), "max_new_tokens": 8, "limit": 6}
    without, both = (planned(RunConfig(model=str(path), **given, samples=samples), path) for samples in (0, 3))
    more = [step for step in both if step not in without]
    assert [(step.name, step.prompts, step.sweeps) for step in more] == [
        (f"sampled replies of the {which} model", 3 * 12, 8) for which in ("base", "edited")
    ]
    assert planned(RunConfig(model=str(path), **sets, samples=3), path) == planned(RunConfig(model=str(path), **sets), path)


def test_prompts_are_those_of_the_roles_and_splits(tiny: Tiny, sets: dict[str, Any]) -> None:
    model = tiny()
    found = read_prompts(RunConfig(model=str(model), **sets), open_folder(model))
    assert [len(ids) for ids in found.train.values()] == [5, 5, 5] and [len(ids) for ids in found.val.values()] == [2, 2, 2]
    assert {name: len(ids) for name, ids in found.test.items()} == {"target": 5, "baseline": 5, "harmless": 5}
    assert found.exact and found.languages == 0 and found.positions == 8
    every = [ids for part in (found.train, found.val, found.test) for asked in part.values() for ids in asked]
    assert len(found) == len(every) == 36 and found.tokens == sum(map(len, every))
    assert len(found.half()) == 9 + 3 + 9


def test_without_a_tokenizer_tokens_are_guessed_from_letters(tiny: Tiny) -> None:
    model = tiny()
    for file in model.glob("tokenizer*"):
        file.unlink()
    config = RunConfig(model=str(model), target=("censorship",), limit=40)
    found = read_prompts(config, open_folder(model))
    assert not found.exact and found.languages == 2
    assert 20 < found.tokens / len(found) < 60


@pytest.mark.parametrize("count", [2, 3, 4, 9])
@pytest.mark.parametrize("languages", [0, 2])
def test_no_more_candidates_are_tried_than_planned(count: int, languages: int) -> None:
    generator = torch.Generator().manual_seed(3)
    layers, width = 24, 16

    def some() -> SetActivations:
        mean = torch.randn(2, layers + 1, width, generator=generator)
        return SetActivations(mean, mean.square() + 1, torch.zeros(1, 1, layers + 1, width))

    of_one = [GroupKey(key.role, lang) for lang in ("en", "zh")[:languages] for key in (TARGET, BASELINE)]
    val = {key: torch.randn(6, 2, layers + 1, width, generator=generator) for key in (TARGET, BASELINE)}
    directions = estimate(Activations({key: some() for key in (TARGET, BASELINE, HARMLESS, *of_one)}, val, (-1, -2), {}))
    assert len(candidates(directions, count, 0.8, "skip", False)) == at_most(count, layers, languages)
