"""The choice of the edit: from train and val alone, with everything that was measured in its document."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from abliterate.choice import own_examples, tuned
from abliterate.choice import select as selection
from abliterate.choice.candidates import BY_EFFECT, Candidate
from abliterate.choice.front import WEIGHTS, Point
from abliterate.choice.gate import GATED, Replied
from abliterate.choice.method import settled_method
from abliterate.choice.scores import Scores
from abliterate.choice.select import SHARES, SHORTLIST, select
from abliterate.choice.tuned import best_start, starts
from abliterate.choice.tuning.after_thought import Line
from abliterate.choice.tuning.on_policy import Heard
from abliterate.choice.tuning.state import Seen
from abliterate.commands import run as pipeline
from abliterate.compute.passes import Pass
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.config import RunConfig
from abliterate.directions.estimate import Directions, estimate, keep_axes
from abliterate.directions.groups import activations_of
from abliterate.errors import InputError
from abliterate.model.chat.thinking import decode
from abliterate.model.edit import edit_from_direction, edit_from_rows
from abliterate.outcomes.records import OUTCOMES
from abliterate.prompts import RoleSets
from abliterate.report.choice import picked
from abliterate.runs.resume import NO_STORE, ResumeStore

Tiny = Callable[..., Path]
WORDS = ["stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror", "harbour", "lantern", "meadow"]


@pytest.fixture
def given(tiny: Tiny, tmp_path: Path) -> tuple[WholeModel, RoleSets, dict[str, Any], Directions, Any]:
    made: dict[str, Any] = {}
    for role, start in (("target", "Burn the"), ("baseline", "Draw the"), ("keep", "Steal the"), ("harmless", "Name a")):
        path = tmp_path / f"{role}.txt"
        path.write_text("".join(f"{start} {word}.\n" for word in WORDS), encoding="utf-8")
        made[role] = str(path) if role == "harmless" else (str(path),)
    path = tiny()
    model = load_model(path, "float32", "cpu")
    sets = RoleSets(made["target"], made["baseline"], made["keep"], made["harmless"]).without_test()
    activations = activations_of(model, sets, 3)
    return model, sets, {"model": str(path), **made, "candidates": 2, "tune_steps": 2}, estimate(activations), keep_axes(activations)


@pytest.fixture
def withholding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the random model says counts as withheld."""
    monkeypatch.setattr("abliterate.choice.tuning.replies.WITHHELD", frozenset(OUTCOMES))


def measured_by(monkeypatch: pytest.MonkeyPatch, measure: Callable[..., list[Point]]) -> None:
    """Edits are measured by this, before the tuner and by it."""
    for module in (selection, tuned):
        monkeypatch.setattr(module, "measure", measure)


@pytest.mark.usefixtures("withholding")
def test_what_is_chosen_is_on_the_front_and_in_the_document(given: Any) -> None:
    model, sets, made, directions, away = given
    edit, selected = select(model, sets, RunConfig(**made), directions, "gradient", away)
    tuning = selected.tuning
    (chosen,) = [row for row in tuning.front if row.chosen]
    assert chosen.on_front and chosen.name == selected.name
    assert tuning.kind == "gradient" and tuning.steps == 6 == len(tuning.history)
    assert {"keep", "baseline", "harmless", "target"} <= tuning.history[0].document().keys() and (tuning.examples.target or 0) >= 1
    assert tuning.front[0].step == 0 and tuning.front[-1].step == 6 and len(tuning.front) <= SHORTLIST + 3
    replied = [row for row in tuning.front if row.replies]
    assert chosen in replied and len(replied) == min(GATED, sum(row.on_front for row in tuning.front))
    assert all(row.on_front and row.replies["target"].asked == selected.yardstick.withheld for row in replied)
    assert [list(pair) for pair in tuning.strength] == edit.strength.tolist() and selected.strength == float(edit.strength.max())
    assert selected.scoped.sets == ("keep",) and 0 <= selected.scoped.along_keep <= 1
    by_effect = selected.chosen.estimator == BY_EFFECT
    assert (selected.scoped.share_left is None) == by_effect
    assert sum(row.estimator == BY_EFFECT for row in selected.candidates) == 3


class Counted:
    """Which parts of the selection were done; the one after ``until`` is interrupted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, until: int = 99) -> None:
        self.done: list[str] = []
        for module, name in (
            (own_examples, "short_replies"),
            (selection, "score_all"),
            (selection, "measure"),
            (tuned, "measure"),
            (selection, "gated"),
        ):
            monkeypatch.setattr(module, name, self.counted(name, getattr(module, name), until))

    def counted(self, name: str, real: Callable[..., Any], until: int) -> Callable[..., Any]:
        def counting(*arguments: Any) -> Any:
            if len(self.done) == until:
                raise KeyboardInterrupt
            self.done.append(name)
            return real(*arguments)

        return counting


LOOKS = 3
PARTS = ["short_replies", "short_replies", "score_all", "measure", *["measure"] * LOOKS, "gated"]


@pytest.mark.usefixtures("withholding")
@pytest.mark.parametrize("until", [1, 3, 5, 7])
def test_a_selection_that_was_stopped_goes_on_with_the_part_it_was_in(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: int
) -> None:
    model, sets, made, directions, away = given
    chosen = select(model, sets, RunConfig(**made), directions, "gradient", away)
    kept = ResumeStore(tmp_path / "kept")
    for stop, wanted in ((until, PARTS[:until]), (99, PARTS[until:])):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) if stop < 99 else nullcontext():
            counted = Counted(patch, stop)
            found = select(model, sets, RunConfig(**made), directions, "gradient", away, kept)
        assert counted.done == wanted
    assert torch.equal(found[0].direction, chosen[0].direction) and torch.equal(found[0].strength, chosen[0].strength)
    assert found[1] == chosen[1]


@pytest.mark.usefixtures("withholding")
def test_what_was_kept_of_other_directions_is_not_used(given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sets, made, directions, away = given
    kept, config = ResumeStore(tmp_path / "kept"), RunConfig(**made, tune_directions="off")  # what begins by effect knows no directions
    select(model, sets, config, directions, "gradient", away, kept)
    counted = Counted(monkeypatch)
    select(model, sets, config, directions, "gradient", away, kept)
    assert counted.done == []
    turned = replace(directions, direction={name: t.flip(-1) for name, t in directions.direction.items()})
    select(model, sets, config, turned, "gradient", away, kept)
    assert counted.done == PARTS[2:]  # the replies are the model's own


@pytest.mark.usefixtures("withholding")
def test_without_memory_for_the_costs_only_strengths_are_tuned(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sets, made, directions, away = given
    monkeypatch.setattr("abliterate.choice.tuning.first_order.free", lambda device: 1.0)
    _, selected = select(model, sets, RunConfig(**made), directions, "gradient", away)
    assert "only strengths were tuned, because there is too little memory to turn directions" in selected.relaxed
    cosines = selected.tuning.cosine_to_start
    assert cosines and all(each == pytest.approx(1, abs=1e-5) for row in cosines for each in row)


@pytest.mark.usefixtures("withholding")
def test_the_replies_of_the_best_edits_decide(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of the front is said to withhold nothing any more, and all others everything."""
    model, sets, made, directions, away = given
    points = [Point(0.1 * (i + 1), 0.0, 0.09 - 0.01 * i, 0.0, 1.0) for i in range(6)]
    measured_by(monkeypatch, lambda model, edits, *more: [points[i] for i in range(len(edits))])
    asked: list[int] = []

    def replied(model: Any, seen: Any, *more: Any) -> list[dict[Any, Replied]]:
        asked.append(len(seen))
        return [{"target": Replied(9, 9, 0 if i == 1 else 9, 0, 0)} for i in range(len(seen))]

    monkeypatch.setattr(selection, "gated", replied)
    _, selected = select(model, sets, RunConfig(**made), directions, "off", away)
    (chosen,) = [row for row in selected.tuning.front if row.chosen]
    assert asked == [GATED] and chosen.target_left == pytest.approx(0.2)
    assert chosen.replies["target"].withheld == 0
    assert "of 9 replies that the base withheld, 0 are still withheld" in str(picked(selected))


def test_without_tuning_a_candidate_is_chosen(given: Any) -> None:
    model, sets, made, directions, _ = given
    edit, selected = select(model, sets, RunConfig(**made, strength=0.5), directions, "off")
    assert selected.tuning.kind == "off" and selected.tuning.history == ()
    assert float(edit.strength.max()) in [pytest.approx(0.5 * share) for share in SHARES]


@pytest.mark.usefixtures("withholding")
@pytest.mark.parametrize("how", ["gradient", "off", "search"])
def test_an_edit_of_no_strength_is_chosen_like_any_other(given: Any, how: Any) -> None:
    model, sets, made, directions, away = given
    edit, selected = select(model, sets, RunConfig(**made, strength=0.0, trials=4), directions, how, away)
    assert not edit.strength.any() and selected.strength == 0.0
    ended = [note for note in selected.relaxed if note.startswith("tuning ended")]
    assert ended == (["tuning ended at step 0 of 6: all strengths were zero"] if how == "gradient" else [])
    json.dumps(selected.document(), allow_nan=False)


@pytest.mark.usefixtures("withholding")
@pytest.mark.parametrize("broken", ["looks", "all"])
def test_edits_that_break_the_outputs_are_told_apart_or_in_one_line(given: Any, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Looks of the tuner, or whatever is measured, come to no number."""
    model, sets, made, directions, away = given
    real = selection.measure

    def measured(model: Any, edits: Any, examples: Any, *more: Any) -> list[Point]:
        found = real(model, edits, examples, *more)
        return [replace(point, kl=math.nan, keep_kl=math.inf) for point in found] if broken == "all" or len(edits) == 1 else found

    measured_by(monkeypatch, measured)
    config = RunConfig(**made)
    if broken == "all":
        with pytest.raises(InputError, match="the model's outputs are not finite with any edit that was tried; try --dtype float32"):
            select(model, sets, config, directions, "gradient", away)
        return
    _, selected = select(model, sets, config, directions, "gradient", away)
    looks = [row for row in selected.tuning.front if row.step > 0]
    assert looks and all(row.kl is None and row.keep_kl is None and not row.on_front for row in looks)
    json.dumps(selected.document(), allow_nan=False)


def test_the_tuner_begins_at_no_candidate_that_breaks_the_outputs() -> None:
    edit = edit_from_direction(torch.ones(4), 2)
    tried = [Candidate(str(i), "per-layer", "projected", -1, 0, edit, torch.ones(4), 0) for i in range(4)]
    scores = [Scores(math.nan, 0.0, 1.0, 0.0), Scores(-1.0, 0.5, 1.0, 0.0), Scores(-1.0, 0.0, 1.0, math.inf), Scores(-1.0, 0.1, 1.0, 0.11)]
    ranked = starts(list(zip(tried, scores, strict=True)), "balanced", 0.1)
    assert [c.name for c in ranked[:2]] == ["3", "1"]


@pytest.mark.usefixtures("withholding")
def test_what_the_bound_on_kl_cost_is_told(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sets, made, directions, away = given
    points = [Point(0.02, 0.0, 0.3, 0.0, 1.0), Point(0.6, 0.0, 0.05, 0.0, 1.0), Point(0.9, 0.0, 0.01, 0.0, 1.0)]
    measured_by(monkeypatch, lambda model, edits, *more: [points[i % 3] for i in range(len(edits))])
    _, selected = select(model, sets, RunConfig(**made), directions, "off", away)
    other = next(row.name for row in selected.tuning.front if row.kl == 0.3)
    (said,) = selected.tuning.given_up
    assert said == f"without --max-kl 0.1, {other} would be the cheapest: 2.0 % left, KL 0.3 nats"
    assert said in str(picked(selected))


def test_a_search_measures_as_many_edits_as_it_may(given: Any) -> None:
    model, sets, made, directions, _ = given
    _, selected = select(model, sets, RunConfig(**made, trials=10), directions, "search")
    assert sum(row.name.startswith("trial") for row in selected.tuning.front) == 10


@pytest.mark.usefixtures("withholding")
def test_scoped_directions_stay_orthogonal_to_the_keep_sets(given: Any) -> None:
    model, sets, made, directions, away = given
    config = RunConfig(**made, tune_directions="scoped", prefer="removal", max_kl=100)
    edit, selected = select(model, sets, config, directions, "gradient", away)
    assert selected.tuning.kind == "gradient" and 0 <= selected.scoped.along_keep <= 1
    if selected.name.startswith("tuned"):
        position = -1 - selected.chosen.position
        along = torch.einsum("lckd,ldn->lckn", edit.direction, away[position])
        assert along[edit.strength > 0].abs().max() < 1e-4 and selected.scoped.along_keep < 1e-4


def test_how_it_is_improved_on_is_known_before_anything_runs() -> None:
    config = RunConfig(model="m")
    assert settled_method(config, whole=True) == "gradient" and settled_method(config, whole=False) == "off"
    assert settled_method(RunConfig(model="m", embedding="untie"), whole=True) == "off"
    assert settled_method(RunConfig(model="m", tune="search"), whole=False) == "search"
    with pytest.raises(InputError, match="--tune gradient needs the model whole"):
        settled_method(RunConfig(model="m", tune="gradient"), whole=False)
    with pytest.raises(InputError, match="leave --embedding edit out"):
        settled_method(RunConfig(model="m", tune="gradient", embedding="edit"), whole=True)


@pytest.mark.parametrize("how", ["gradient", "search", "off"])
def test_where_nothing_is_withheld_nothing_is_edited(given: Any, monkeypatch: pytest.MonkeyPatch, how: Any) -> None:
    model, sets, made, directions, away = given
    monkeypatch.setattr("abliterate.choice.tuning.replies.WITHHELD", frozenset())
    asked = len(sets.prompts("target", "val"))
    said = rf"^--target target: the model withholds none of its {asked} val prompts \(short replies: \d+ \w+.*run audit on the model"
    with pytest.raises(InputError, match=said):
        select(model, sets, RunConfig(**made), directions, how, away)


@pytest.mark.usefixtures("withholding")
def test_nothing_of_the_test_prompts_is_known_before_the_final_test(given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is estimated and chosen goes through functions that are given the sets without their test prompts, and asks none of them."""
    _, _, made, _, _ = given
    whole = RoleSets(made["target"], made["baseline"], made["keep"], made["harmless"])
    tested = {prompt.text for group in whole.test_sets() for prompt in group}
    assert tested and not {p.text for group in whole.without_test().all for p in group} & tested
    assert whole.without_test().hashes == whole.hashes
    asked: list[str] = []
    final = False

    def watched(name: str) -> Callable[..., Any]:
        real = getattr(WholeModel, name)

        def watching(self: WholeModel, passes: list[Pass], *more: Any, **named: Any) -> Any:
            if not final:
                asked.extend(decode(self.tokenizer, ids) for one in passes for ids in one.sequences)
            return real(self, passes, *more, **named)

        return watching

    for name in ("watch", "logits", "replies"):
        monkeypatch.setattr(WholeModel, name, watched(name))
    respond = pipeline.respond

    def responding(*arguments: Any) -> Any:
        nonlocal final
        final = True
        return respond(*arguments)

    monkeypatch.setattr(pipeline, "respond", responding)
    pipeline.run(RunConfig(**made, max_new_tokens=2), tmp_path / "run")
    assert final and asked and not [text for text in asked for prompt in tested if prompt in text]
    for stage in (pipeline._activations, pipeline._selection):
        assert "sets" in inspect.signature(stage).parameters and "tested" not in inspect.signature(stage).parameters


def test_a_start_that_removes_nothing_is_never_first() -> None:
    idle, strong, weak = (Point(left, 0.0, kl, 0.0, 1.0) for left, kl in ((1.0, 0.0), (0.2, 0.9), (0.9, 0.05)))
    for weight in WEIGHTS.values():
        assert idle.removal(weight) == 0 < weak.removal(weight) < strong.removal(weight)


def test_starts_are_ranked_by_what_is_removed_for_what_it_costs() -> None:
    edit = edit_from_rows(torch.eye(4)[:2, None], torch.ones(2, 2))
    offered = {name: Candidate(name, "per-layer", "projected", -1, 0, edit, torch.ones(4), 0) for name in ("idle", "strong", "single")}
    scores = {"idle": Scores(-1.0, 1.0, 0.0, 0.0), "strong": Scores(-9.0, 0.1, 0.5, 0.4), "single": Scores(-9.0, 0.0, 0.5, 0.0)}
    offered["single"] = replace(offered["single"], kind="single")
    assert [c.name for c in starts([(offered[n], scores[n]) for n in offered], "balanced")] == ["strong", "idle"]


def test_a_start_that_trades_one_refusal_for_another_is_found_by_its_replies(
    given: Any, monkeypatch: pytest.MonkeyPatch, withholding: None, tmp_path: Path
) -> None:
    """By the openings that are known, the first-order edits leave less than the estimated one; by those of the replies, they leave more."""
    model, sets, made, *_ = given
    config, val = RunConfig(**made), own_examples.own_examples(model, sets, "val", NO_STORE)
    rows = torch.nn.functional.normalize(torch.randn(3, 2, 1, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    edits = [edit_from_rows(each, torch.ones(2, 2)) for each in rows]
    kinds = [BY_EFFECT, "projected", BY_EFFECT]
    tried = [Candidate(str(i), "per-layer", kind, -1, 0, edits[i], torch.ones(32), 0) for i, kind in enumerate(kinds)]
    seen = [Seen(str(i), 0, 0.0, edits[i], Point(left, 0.0, 0.0, 0.0, 1.0)) for i, left in enumerate((0.1, 0.4, 0.2))]
    replied: list[Any] = []

    def hear(model: Any, edit: Any, examples: Any) -> list[Heard]:
        replied.append(edit)
        line = Line([], [7 + len(replied), 8, 9, 10])
        return [Heard(place, line, True) for place in range(len(examples.asked))]

    def left(model: Any, edits: Any, examples: Any) -> list[float]:
        known = {tuple(line.tokens) for lines in examples.later for line in lines}
        return [0.9, 0.4, 0.8] if known == {(8, 8, 9, 10), (9, 8, 9, 10)} else [1.0] * len(edits)

    monkeypatch.setattr("abliterate.choice.tuning.on_policy.hear", hear)
    monkeypatch.setattr(tuned, "target_left", left)
    store = ResumeStore(tmp_path / "store")
    assert best_start(model, tried, seen, val, config, store) == 1
    assert [id(edit) for edit in replied] == [id(edits[0]), id(edits[1])]  # the first of either kind
    assert best_start(model, tried, seen, val, config, store) == 1 and len(replied) == 2  # resumed
    assert best_start(model, tried[:1] + tried[2:], seen[:1] + seen[2:], val, config, store) == 0 and len(replied) == 2
