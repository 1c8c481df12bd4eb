"""The space of edits and the search through it: on a made landscape whose best edits are known."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean

import pytest
import torch
from conftest import save_tiny
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage

from abliterate.choice import study
from abliterate.choice.candidates import Candidate, Directions, candidates
from abliterate.choice.front import WEIGHTS, Point, Preference, prefer
from abliterate.choice.search import Tried, search
from abliterate.choice.space import Parameters, Space, profile
from abliterate.compute.passes import Intervention, Pass
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.config import RunConfig
from abliterate.errors import InputError
from abliterate.model.edit import Edit, edit_from_direction, edit_from_rows

LAYERS, WIDTH = 12, 8
PEAK = 7  # the block where the made landscape's direction is the right one, and from which the edit pays
IDEAL = Point(0.0, 0.0, 0.05, 0.0, 0.0)  # attention alone, from the peak up, along the direction of the peak
INF, NAN = float("inf"), float("nan")


def _rows(seed: int = 0, languages: int = 1) -> torch.Tensor:
    """A direction a block that turns from the first axis to the second along the depth; at ``PEAK`` it lies between them."""
    turn = torch.arange(LAYERS) / (2 * PEAK) * torch.pi / 2
    rows = torch.zeros(LAYERS, languages, WIDTH)
    rows[:, 0, 0], rows[:, 0, 1] = turn.cos(), turn.sin()
    for other in range(1, languages):
        rows[:, other, 2 + other] = 1.0
    return rows


def _candidate(name: str, plan: Edit) -> Candidate:
    kind = "single" if plan.same_everywhere() else "per-layer"
    return Candidate(name, kind, "projected", -1, 0, plan, torch.ones(WIDTH), 0)


def _from(first: int, languages: int = 1) -> Candidate:
    strength = (torch.arange(LAYERS) >= first).float()[:, None].expand(-1, 2)
    return _candidate(f"from {first}, {languages}", edit_from_rows(_rows(languages=languages), strength))


def _single(block: int) -> Candidate:
    return _candidate(f"block {block}", edit_from_direction(_rows()[block, 0], LAYERS))


def _space() -> Space:
    return Space([_single(2), _single(10), _from(3), _from(6), _from(4, languages=2)], LAYERS)


def _landscape(plans: Sequence[Edit]) -> list[Point]:
    """The target goes by what attention edits at the peak and above along the direction of the peak; all else only costs."""
    right = _rows()[PEAK, 0]
    found = []
    for plan in plans:
        along = (plan.direction[:, :, 0] @ right).square() * plan.strength
        removed = float(along[PEAK:, 0].mean())
        wasted = float(plan.strength[:PEAK].mean() + plan.strength[:, 1].mean() + 0.3 * (plan.strength - along)[PEAK:, 0].mean())
        found.append(Point(1 - removed, 0.1 * wasted, 0.2 * wasted + 0.05 * removed, 0.0, float(plan.strength.sum())))
    return found


def _random(space: Space, count: int, seed: int) -> list[Parameters]:
    draw = random.Random(seed)
    words = {name: list(choices) for name, choices in space.choices.items()}
    return [
        {**{n: draw.choice(c) for n, c in words.items()}, **{n: draw.uniform(*r) for n, r in space.ranges.items()}} for _ in range(count)
    ]


def _points(tried: Sequence[Tried]) -> list[Point]:
    return [each.point for each in tried]


def _best(points: Sequence[Point], weight: float) -> float:
    return min(float(point.cost(weight)) for point in points)


def test_a_profile_peaks_falls_linearly_to_its_share_and_ends() -> None:
    found = profile(8, 0.8, 3.0, 0.5, 2.0)
    assert torch.allclose(found, torch.tensor([0.0, 0.4, 0.6, 0.8, 0.6, 0.4, 0.0, 0.0]))
    assert torch.allclose(profile(4, 1.0, 1.5, 0.0, 1.0), torch.tensor([0.0, 0.5, 0.5, 0.0]))


def test_an_edit_is_the_source_at_the_strength_of_the_profiles() -> None:
    space = _space()
    asked = {
        "direction": "from 3, 1", "layer": 0.0,
        "attention.max_weight": 0.9, "attention.position": 6.0, "attention.min_weight": 0.0, "attention.distance": 4.5,
        "mlp.max_weight": 0.5, "mlp.position": 11.0, "mlp.min_weight": 1.0, "mlp.distance": 1.0,
    }  # fmt: skip
    plan = space.plan_of(asked)
    assert torch.equal(plan.direction, _from(3).edit.direction) and plan.embedding == "skip"
    expected = profile(LAYERS, 0.9, 6.0, 0.0, 4.5)
    expected[:3] = 0  # where no candidate with these directions edits anything
    assert torch.equal(plan.strength[:, 0], expected)
    assert plan.strength[:, 1].tolist() == [0.0] * 10 + [0.5] * 2


def test_every_edit_of_the_space_is_a_valid_plan() -> None:
    space = _space()
    assert {p["direction"] for p in _random(space, 60, 1)} == set(space.sources)
    for parameters in _random(space, 60, 1):
        plan = space.plan_of(parameters)
        gram = plan.direction @ plan.direction.transpose(-1, -2)
        assert torch.allclose(gram, torch.eye(gram.shape[-1]).expand_as(gram), atol=1e-5)
        assert bool(((plan.strength >= 0) & (plan.strength <= 1)).all())
        assert plan.embedding == "skip" or plan.same_everywhere()
        again = space.plan_of(parameters)
        assert torch.equal(plan.direction, again.direction) and torch.equal(plan.strength, again.strength)


def test_one_direction_is_interpolated_between_the_blocks_that_a_candidate_edits() -> None:
    space = _space()
    name = next(name for name, source in space.sources.items() if source.along)
    assert space.sources[name].along == tuple(range(3, LAYERS)) and space.ranges["layer"] == (3.0, 11.0)
    at = {**space.starts[0], "direction": name}
    assert torch.allclose(space.plan_of({**at, "layer": 5.0}).direction[0, 0, 0], _rows()[5, 0], atol=1e-6)
    plan = space.plan_of({**at, "layer": 5.5})
    middle = _rows()[5, 0] + _rows()[6, 0]
    assert plan.same_everywhere() and torch.allclose(plan.direction[0, 0, 0], middle / middle.norm(), atol=1e-6)
    below = Space([_from(3)], LAYERS, max_layer=0.5)
    assert below.ranges["layer"] == (3.0, 5.0)


def test_the_search_begins_with_the_candidates_as_they_are_and_more_weakly() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = {name: torch.randn(2, LAYERS + 1, WIDTH, generator=generator) for name in ("difference-of-means", "projected")}
    scores = {name: torch.rand(2, LAYERS + 1, generator=generator) for name in rows}
    made = candidates(Directions(rows, scores, scores), 4, 0.8, "auto", False)
    space = Space(made, LAYERS)
    assert len(space.starts) == 2 * len(made) and len(space.sources) < 2 * len(made)
    for parameters, candidate in zip(space.starts, made, strict=False):
        plan = space.plan_of(parameters)
        assert torch.equal(plan.direction, candidate.edit.direction) and torch.equal(plan.strength, candidate.edit.strength)
        assert (plan.embedding, plan.keep_norms) == (candidate.edit.embedding, candidate.edit.keep_norms)
    for strong, weak in zip(space.starts, space.starts[len(made) :], strict=False):
        assert torch.allclose(space.plan_of(weak).strength, 0.7 * space.plan_of(strong).strength)
    for parameters in space.starts:
        assert parameters.keys() == space.choices.keys() | space.ranges.keys()
        assert all(low <= float(parameters[name]) <= high for name, (low, high) in space.ranges.items())


def test_a_model_of_one_block_has_a_space_too() -> None:
    only = _candidate("only", edit_from_direction(torch.ones(WIDTH), 1))
    space = Space([only], 1)
    assert torch.equal(space.plan_of(space.starts[0]).strength, only.edit.strength)


def test_the_search_comes_nearer_to_the_best_edits_than_as_many_random_ones() -> None:
    space, trials, seeds = _space(), 96, range(3)
    tried = [_points(search(space, _landscape, trials, 8, seed)) for seed in seeds]
    chance = [_landscape([space.plan_of(parameters) for parameters in _random(space, trials, seed)]) for seed in seeds]
    starts = _landscape([space.plan_of(parameters) for parameters in space.starts])
    for weight in (2.0, 8.0):
        best = float(IDEAL.cost(weight))
        found, drawn = (fmean(_best(points, weight) - best for points in some) for some in (tried, chance))
        assert 0 <= found < 0.75 * drawn
        assert found < _best(starts, weight) - best


def test_a_seed_gives_the_same_edits_again_and_another_seed_others() -> None:
    asked = [[each.parameters for each in search(_space(), _landscape, 24, 5, seed)] for seed in (7, 7, 8)]
    assert asked[0] == asked[1]
    assert asked[0][:10] == asked[2][:10] and asked[0][10:] != asked[2][10:]  # the candidates first


class Evaluated:
    """The landscape, with note of what was measured at once; ``before`` is called first with the number of the batch."""

    def __init__(self, before: Callable[[int], object] = lambda number: None) -> None:
        self.batches: list[list[Edit]] = []
        self._before = before

    def __call__(self, plans: Sequence[Edit]) -> list[Point]:
        self.batches.append(list(plans))
        self._before(len(self.batches))
        return _landscape(plans)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


@pytest.fixture(params=["file", "database"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "study.journal") if request.param == "file" else f"sqlite:///{tmp_path / 'study.db'}"


def _different(tried: Sequence[Tried]) -> bool:
    seen = [sorted(each.parameters.items()) for each in tried]
    return all(one not in seen[:i] for i, one in enumerate(seen))


def test_edits_are_measured_in_batches_up_to_their_number() -> None:
    evaluate = Evaluated()
    assert len(search(_space(), evaluate, 10, 4)) == 10
    assert evaluate.sizes == [4, 4, 2]


def test_what_is_finished_is_not_measured_again(storage: str) -> None:
    first = search(_space(), _landscape, 9, 3, storage=storage)
    evaluate = Evaluated()
    both = search(_space(), evaluate, 15, 4, seed=1, storage=storage)
    assert evaluate.sizes == [4, 2]
    assert [(t.number, t.parameters, t.point) for t in both[:9]] == [(t.number, t.parameters, t.point) for t in first]
    assert all(torch.equal(a.edit.strength, b.edit.strength) for a, b in zip(first, both, strict=False))
    assert search(_space(), evaluate, 15, 4, storage=storage) and evaluate.sizes == [4, 2]


def test_two_that_share_a_study_see_each_others_trials_and_do_not_repeat_them(storage: str) -> None:
    others: list[Tried] = []

    def meanwhile(number: int) -> None:
        if number == 2:
            others.extend(search(_space(), other, 12, 3, seed=0, storage=storage))

    one, other = Evaluated(meanwhile), Evaluated()
    tried = search(_space(), one, 16, 4, seed=0, storage=storage)
    assert one.sizes == [4, 4] and other.sizes == [3, 3, 2]
    assert [each.number for each in tried] == list(range(16)) and len(others) == 12
    assert _different(tried)
    assert {each.number for each in others} < {each.number for each in tried}


def test_measurements_of_two_names_are_two_studies(storage: str) -> None:
    evaluate = Evaluated()
    search(_space(), evaluate, 4, 4, storage=storage, name="one")
    search(_space(), evaluate, 4, 4, storage=storage, name="other")
    search(Space([_from(3)], LAYERS), evaluate, 4, 4, storage=storage, name="one")
    assert evaluate.sizes == [4, 4, 4]


def test_an_interrupted_search_goes_on_and_tries_what_it_had_not(storage: str) -> None:
    def interrupt(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(_space(), Evaluated(interrupt), 20, 4, storage=storage)
    evaluate = Evaluated()
    tried = search(_space(), evaluate, 20, 4, storage=storage)
    assert evaluate.sizes == [4, 4, 4, 4] and len(tried) == 20
    assert all(dict(start) in [each.parameters for each in tried] for start in _space().starts)
    assert _different(tried)


KILLED = """
import os, sys
sys.path[:0] = [{tests!r}, {here!r}]
from test_search import LAYERS, _landscape, _space
from abliterate.choice.search import search
batches = []
def evaluate(plans):
    batches.append(plans)
    if len(batches) == 2:
        os._exit(9)
    return _landscape(plans)
search(_space(), evaluate, 20, 4, storage={storage!r})
"""


def test_what_a_killed_process_had_under_way_is_tried_by_the_next(tmp_path: Path) -> None:
    here, storage = Path(__file__).parent, str(tmp_path / "study.journal")
    killed = KILLED.format(tests=str(here.parent), here=str(here), storage=storage)
    assert subprocess.run([sys.executable, "-c", killed], cwd=here.parents[1]).returncode == 9
    evaluate = Evaluated()
    tried = search(_space(), evaluate, 20, 4, storage=storage)
    assert evaluate.sizes == [4, 4, 4, 4]
    assert all(dict(start) in [each.parameters for each in tried] for start in _space().starts)


def test_what_another_machine_has_under_way_is_left_to_it_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space, storage = _space(), str(tmp_path / "study.journal")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(study, "_worker", lambda: ["another machine", 1, 0.0])
        away = study.Study(storage, "edits", space, 0, space.starts)
        theirs = away.propose(2)
    here = study.Study(storage, "edits", space, 0, space.starts)
    away.record(theirs[0], _landscape([space.plan_of(theirs[0].parameters)])[0])
    assert [each.number for each in here.finished()] == [theirs[0].number]
    monkeypatch.setattr(study, "LONGEST", timedelta(0))
    study.Study(storage, "edits", space, 0, space.starts)
    away.record(theirs[1], IDEAL)  # too late: it counts as given up
    assert [each.number for each in here.finished()] == [theirs[0].number]
    again = here.propose(9)
    assert sum(dict(each.parameters) == dict(theirs[1].parameters) for each in again) == 1


@pytest.mark.filterwarnings("error")
def test_an_edit_that_breaks_the_outputs_is_the_worst_and_the_search_goes_on_silently(capfd: pytest.CaptureFixture[str]) -> None:
    def breaking(plans: Sequence[Edit]) -> list[Point]:
        points = _landscape(plans)
        return [Point(NAN, INF, NAN, NAN, p.edits) if plan.same_everywhere() else p for p, plan in zip(points, plans, strict=True)]

    tried = search(_space(), breaking, 24, 8)
    broken = [not each.point.finite for each in tried]
    assert 0 < sum(broken) < 24
    assert not broken[prefer(_points(tried), "balanced")[0]]
    assert capfd.readouterr() == ("", "")


EIGHTHS = st.integers(0, 16).map(lambda number: number / 8)
POINTS = st.builds(Point, EIGHTHS, EIGHTHS, EIGHTHS, st.just(0.0), st.just(1.0))


@given(st.lists(POINTS, min_size=1, max_size=10), st.sampled_from(sorted(WEIGHTS)))
def test_the_preferred_edit_is_on_the_front_of_what_the_study_minimises(points: list[Point], how: Preference) -> None:
    left, drift = study.objectives(points[prefer(points, how)[0]])
    for point in points:
        its_left, its_drift = study.objectives(point)
        assert 0 <= its_drift <= 1
        assert its_left > left or its_drift > drift or (its_left, its_drift) == (left, drift)


def test_without_optuna_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "abliterate.choice.study")
    with pytest.raises(InputError, match=r"pip install 'abliterate\[search\]'"):
        search(_space(), _landscape, 4, 4)


@pytest.mark.parametrize("bad", [".", "no/such/folder/study", "nosuch://host/name", "postgresql://me@127.0.0.1:1/name"])
def test_a_storage_that_cannot_be_opened_is_said_in_one_line_without_its_password(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(study.PASSWORD, "hunter2")
    with pytest.raises(InputError, match="--study: ") as raised:
        search(_space(), _landscape, 4, 4, storage=bad)
    assert "hunter2" not in str(raised.value) and "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a study\n")
    with pytest.raises(InputError, match="--study: "):
        search(_space(), _landscape, 4, 4, storage=str(file))
    assert file.read_text() == "not a study\n"


def test_the_databases_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(study, "RDBStorage", lambda url: opened.append(url) or InMemoryStorage())
    monkeypatch.setenv(study.PASSWORD, "hunter2")
    study.storage_of("postgresql://me@host/name")
    assert opened == ["postgresql://me:hunter2@host/name"]
    with pytest.raises(InputError, match=study.PASSWORD) as raised:
        RunConfig(model="m", study="postgresql://me:hunter2@host/name")
    assert "hunter2" not in str(raised.value)
    odbc = "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Dhunter2"
    for query in ("postgresql://me@host/name?password=hunter2", "mysql://me@host/name?a=1&PASSWD=hunter2", odbc):
        with pytest.raises(InputError, match=study.PASSWORD) as raised:
            RunConfig(model="m", study=query)
        assert "hunter2" not in str(raised.value)
    assert RunConfig(model="m", study="postgresql://me@host/name?sslmode=require").study
    assert RunConfig(model="m", study="postgresql://me@host:5432/name").study == "postgresql://me@host:5432/name"


def test_the_search_finds_what_a_real_models_passes_show_it(tmp_path: Path) -> None:
    """The target is what the model itself says first; candidates are edits of a tiny model, all of a batch in one call of it."""
    model = load_model(save_tiny(tmp_path / "tiny", layers=4), "float32", "cpu")
    draw = random.Random(0)
    target, harmless = ([[draw.randrange(3, 250) for _ in range(6)] for _ in range(6)] for _ in range(2))
    base = {which: _first(model, prompts, [None])[0] for which, prompts in (("target", target), ("harmless", harmless))}
    said = base["target"].argmax(-1)

    def evaluate(plans: Sequence[Edit]) -> list[Point]:
        found = []
        for plan, asked, other in zip(plans, _first(model, target, plans), _first(model, harmless, plans), strict=True):
            likely = asked.softmax(-1).gather(-1, said[:, None]).mean() / base["target"].softmax(-1).amax(-1).mean()
            kl = torch.nn.functional.kl_div(other.log_softmax(-1), base["harmless"].log_softmax(-1), log_target=True, reduction="batchmean")
            found.append(Point(min(1.0, float(likely)), 0.0, max(0.0, float(kl)), 0.0, float(plan.strength.sum())))
        return found

    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(4, 1, 32, generator=generator)
    made = [
        _candidate("per block", edit_from_rows(rows, torch.ones(4, 2))),
        *(_candidate(f"block {block}", edit_from_direction(rows[block, 0], 4, policy="skip")) for block in (1, 2)),
    ]
    space = Space(made, 4)
    tried = search(space, evaluate, 24, 8)
    again = evaluate([tried[-1].edit])[0]
    assert again.objectives == pytest.approx(tried[-1].point.objectives, abs=1e-5)
    starts = evaluate([space.plan_of(start) for start in space.starts])
    for how in ("quality", "balanced"):
        assert _points(tried)[prefer(_points(tried), how)[0]].cost(WEIGHTS[how]) < starts[prefer(starts, how)[0]].cost(WEIGHTS[how])


def _first(model: WholeModel, prompts: list[list[int]], plans: Sequence[Edit | None]) -> list[torch.Tensor]:
    """Logits of the first token behind each prompt, [prompt, vocab], under each plan, all asked at once."""
    found = [torch.zeros(len(prompts), model.folder.config.vocab_size) for _ in plans]
    for number, indices, logits in model.logits([Pass(prompts, Intervention(plan)) for plan in plans]):
        found[number][list(indices)] = logits[:, -1]
    return found
