"""The tuner on a tiny model: what it learns from, what it measures, and that it goes down."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import save_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from isometric import widen
from torch import Tensor

from abliterate.choice.front import Point
from abliterate.choice.openings import OPENING_TOKENS, PROBE_TOKENS
from abliterate.choice.tuning.descent import Settings, _Deck, descend
from abliterate.choice.tuning.examples import CONTINUED, Examples, Stay, examples_of, examples_work, led_by
from abliterate.choice.tuning.first_order import first_order
from abliterate.choice.tuning.measure import measure, measuring_work
from abliterate.choice.tuning.metric import coordinates
from abliterate.choice.tuning.openings import ALIKE
from abliterate.choice.tuning.parameters import Parameters
from abliterate.choice.tuning.replies import short_replies
from abliterate.choice.tuning.state import Seen, Step
from abliterate.compute.forward import Continued
from abliterate.compute.passes import Intervention, Pass
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.config import RunConfig
from abliterate.model.edit import Edit, edit_from_rows
from abliterate.prompts import Prompt, Role
from abliterate.runs.resume import NO_STORE, ResumeStore

WORDS = ["stone", "river", "cloud", "paper", "candle", "window"]
PROMPTS: dict[Role, list[Prompt]] = {
    "target": [Prompt(f"t{i}", f"Burn the {w}!", "en") for i, w in enumerate(WORDS)],
    "baseline": [Prompt(f"b{i}", f"Draw the {w}.", "en") for i, w in enumerate(WORDS)],
    "harmless": [Prompt(f"h{i}", f"Name a {w}", "en") for i, w in enumerate(WORDS[:4])],
    "keep": [Prompt(f"k{i}", f"Steal the {w}?", "en") for i, w in enumerate(WORDS[:5])],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    return load_model(save_tiny(Path(tmp_path_factory.mktemp("tuning")) / "m"), "float32", "cpu")


@pytest.fixture(scope="module")
def examples(model: WholeModel) -> Examples:
    return examples_of(model, PROMPTS)


def cost(point: Point) -> float:
    return point.target_left + point.kl


def some_plan(model: WholeModel, strength: float = 1.0) -> Edit:
    rows = torch.randn(model.folder.layers, 1, model.folder.d_model, generator=torch.Generator().manual_seed(0))
    return edit_from_rows(rows, torch.full((model.folder.layers, 2), strength))


def test_examples_are_the_models_own_short_replies(model: WholeModel, examples: Examples) -> None:
    for index, prompt, opening in zip(examples.target.indices, examples.target.prompts, examples.target.openings, strict=True):
        ((_, _, (reply,)),) = model.replies([Pass([prompt])], PROBE_TOKENS)
        assert opening == (reply or [model.tokenizer.eos_token_id])[:OPENING_TOKENS]
        assert examples.target.asked == len(WORDS) and 0 <= index < len(WORDS)
    assert set(examples.stays) == {"keep", "baseline", "harmless"}
    assert all(1 <= len(reply) <= CONTINUED for stay in examples.stays.values() for reply in stay.asked.continuations)


def test_the_openings_of_others_begin_otherwise_and_are_somebodys(examples: Examples) -> None:
    for own, others in zip(examples.target.openings, examples.others, strict=True):
        assert all(other[:ALIKE] != own[:ALIKE] and other in examples.target.openings for other in others)


def test_a_baseline_of_harmless_prompts_is_asked_once(model: WholeModel) -> None:
    prompts = {role: PROMPTS["harmless"] if role == "baseline" else asked for role, asked in PROMPTS.items()}
    heard: list[float] = []
    found = examples_of(model, prompts, heard.append)
    assert set(found.stays) == {"keep", "harmless"}
    assert sum(heard) <= examples_work(prompts) == examples_work(PROMPTS) - 2 * len(WORDS)


def test_a_step_has_twice_as_many_examples_of_a_single_role_that_stays(examples: Examples) -> None:
    alone = replace(examples, stays={"harmless": examples.stays["harmless"]})
    assert Counter(card.role for card in _Deck(alone, 1, 0).deal(1)) == {"target": 1, "harmless": 2}
    assert Counter(card.role for card in _Deck(examples, 1, 0).deal(1)) == {"target": 1, "keep": 1, "baseline": 1, "harmless": 1}


def test_gathering_and_measuring_say_how_much_they_do(model: WholeModel, examples: Examples) -> None:
    heard: list[float] = []
    examples_of(model, PROMPTS, heard.append)
    assert sum(heard) <= examples_work(PROMPTS)
    heard.clear()
    measure(model, [some_plan(model)] * 2, examples, heard.append)
    assert sum(heard) == 2 * measuring_work(examples)


def test_an_edit_of_no_strength_moves_nothing_and_leaves_all(model: WholeModel, examples: Examples) -> None:
    (point,) = measure(model, [some_plan(model, 0.0)], examples)
    assert max(point.keep_kl, point.kl, point.kl_sequence) < 1e-5 and point.edits == 0
    ((_, _, rows),) = list(model.logits([Pass([[*examples.target.prompts[0], *examples.target.openings[0][:1]]], kept=2)]))
    first = rows[0, 0].softmax(-1)[examples.target.openings[0][0]]
    assert 0 < point.target_left <= 1 and first > 0


def test_many_edits_are_measured_as_each_alone(model: WholeModel, examples: Examples) -> None:
    plans = [some_plan(model, s) for s in (0.3, 1.0)]
    alone = [measure(model, [plan], examples)[0] for plan in plans]
    for found, wanted in zip(measure(model, plans, examples), alone, strict=True):
        assert found.objectives == pytest.approx(wanted.objectives, rel=1e-4) and found.edits == wanted.edits
    assert alone[1].kl > alone[0].kl > 0


def test_val_is_looked_at_now_and_then_and_at_the_end() -> None:
    settings = Settings(steps=5, weights=(1.0, 2.0), every=4)
    assert settings.total == 10 and settings.looked == [4, 5]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 5))
def test_patience_can_run_out_before_a_phase_is_over_anyway(steps: int, patience: int) -> None:
    looked = Settings(steps=steps, patience=patience).looked
    assert looked[-1] == steps and all(1 <= later - earlier <= 6 for earlier, later in itertools.pairwise([0, *looked]))
    assert len([step for step in looked if step < steps]) > patience or steps <= patience + 1


def test_the_default_steps_leave_patience_time_to_run_out(model: WholeModel, examples: Examples) -> None:
    settings = replace(Settings(steps=RunConfig(model="m").tune_steps), weights=(5.0,), batch=2)
    point = Point(0.0, 0.0, 0.0, 0.0, 0.0)
    _, steps = descend(model, Parameters.of(some_plan(model), 0.5, True), examples, lambda plan: point, cost, settings)
    assert len(steps) < settings.steps


def test_the_target_becomes_less_likely_than_where_it_began(model: WholeModel, examples: Examples) -> None:
    settings = Settings(steps=10, weights=(0.5,), batch=6, every=10, strength_rate=0.1, turn=0.3, near=0.0, few=0.0)
    parameters = Parameters.of(some_plan(model), 0.5, True)
    before = measure(model, [parameters.baked()], examples)[0]
    heard: list[float] = []
    seen, steps = descend(model, parameters, examples, lambda plan: measure(model, [plan], examples)[0], cost, settings, heard.append)
    assert [s.step for s in steps] == list(range(1, 11)) and sum(heard) == 10 + settings.looks
    assert seen[-1].point.target_left < 0.7 * before.target_left
    assert measure(model, [seen[-1].edit], examples)[0].objectives == pytest.approx(seen[-1].point.objectives, rel=1e-4)


def test_the_same_seed_gives_the_same_edit_and_another_seed_another(model: WholeModel, examples: Examples) -> None:
    def tuned(seed: int) -> Edit:
        settings = Settings(steps=3, weights=(5.0,), batch=3, every=3, seed=seed)
        point = Point(0.0, 0.0, 0.0, 0.0, 0.0)
        return descend(model, Parameters.of(some_plan(model), 0.5, True), examples, lambda plan: point, cost, settings)[0][-1].edit

    assert torch.equal(tuned(0).strength, tuned(0).strength) and torch.equal(tuned(0).direction, tuned(0).direction)
    assert not torch.equal(tuned(0).strength, tuned(1).strength)


def test_a_heavier_drift_holds_the_model_nearer(model: WholeModel, examples: Examples) -> None:
    def moved(weight: float) -> float:
        settings = Settings(steps=8, weights=(weight,), batch=6, every=8, strength_rate=0.1)
        parameters = Parameters.of(some_plan(model), 0.5, True)
        seen, _ = descend(model, parameters, examples, lambda plan: measure(model, [plan], examples)[0], cost, settings)
        return seen[-1].point.kl + seen[-1].point.keep_kl

    assert moved(100.0) < moved(0.1)


def test_a_phase_that_sees_nothing_better_is_over(model: WholeModel, examples: Examples) -> None:
    settings = Settings(steps=20, weights=(5.0, 5.0), batch=2, every=1, patience=2)
    point = Point(0.0, 0.0, 0.0, 0.0, 0.0)
    seen, steps = descend(model, Parameters.of(some_plan(model), 0.5, True), examples, lambda plan: point, cost, settings)
    assert len(steps) == len(seen) == 6  # the first look of a phase is its best, and two more are waited for


@pytest.mark.parametrize("begun", [0.0, 0.5])
def test_where_no_strength_is_left_the_descent_is_over(model: WholeModel, examples: Examples, begun: float) -> None:
    """With so heavy a drift every strength comes to nothing, and a strength of nothing has no gradient."""
    settings = Settings(steps=6, weights=(500.0, 500.0), batch=2, every=1, patience=9, strength_rate=0.3)
    parameters = Parameters.of(some_plan(model), begun, True)
    seen, steps = descend(model, parameters, examples, lambda plan: measure(model, [plan], examples)[0], cost, settings)
    assert len(steps) < settings.total and parameters.ended() == "all strengths were zero"
    assert len(seen) == len(steps) and all(each.point.finite for each in seen)


@pytest.mark.parametrize("which", ["strength", "vectors"])
def test_parameters_that_are_no_numbers_any_more_end_the_descent(model: WholeModel, examples: Examples, which: str) -> None:
    parameters = Parameters.of(some_plan(model), 0.5, True)
    with torch.no_grad():
        getattr(parameters, which).view(-1)[0] = float("nan")
    seen, steps = descend(model, parameters, examples, lambda plan: measure(model, [plan], examples)[0], cost, SETTINGS)
    assert not seen and not steps and "--dtype float32" in str(parameters.ended())


SETTINGS = Settings(steps=5, weights=(5.0, 12.0), batch=3, every=2, patience=2, seed=3)


def descended(
    model: WholeModel,
    examples: Examples,
    kept: ResumeStore = NO_STORE,
    looks: int = 99,
    settings: Settings = SETTINGS,
    heard: list[float] | None = None,
) -> tuple[list[Seen], list[Step], int]:
    """What a descent gives, and how often it looked. Raises KeyboardInterrupt where it would look more often than ``looks``."""
    looked = 0

    def look(plan: Edit) -> Point:
        nonlocal looked
        if looked == looks:
            raise KeyboardInterrupt
        looked += 1
        return measure(model, [plan], examples)[0]

    hear = heard.append if heard is not None else lambda done: None
    seen, steps = descend(model, Parameters.of(some_plan(model), 0.5, True), examples, look, cost, settings, hear, kept)
    return seen, steps, looked


@pytest.mark.parametrize("looks", [1, 3])
def test_a_descent_that_was_stopped_goes_on_to_the_very_same_edits(
    model: WholeModel, examples: Examples, tmp_path: Path, looks: int
) -> None:
    whole, all_steps, in_all = descended(model, examples)
    kept = ResumeStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        descended(model, examples, kept, looks)
    heard: list[float] = []
    seen, steps, looked = descended(model, examples, kept, heard=heard)
    assert looked == in_all - looks and steps == all_steps and sum(heard) == len(steps) + len(seen)
    for own, wanted in zip(seen, whole, strict=True):
        assert torch.equal(own.edit.strength, wanted.edit.strength) and torch.equal(own.edit.direction, wanted.edit.direction)
        assert own.point == wanted.point and (own.name, own.step, own.weight) == (wanted.name, wanted.step, wanted.weight)


def test_a_descent_that_is_done_is_not_walked_again(model: WholeModel, examples: Examples, tmp_path: Path) -> None:
    whole, _, _ = descended(model, examples, ResumeStore(tmp_path))
    seen, _, looked = descended(model, examples, ResumeStore(tmp_path))
    assert looked == 0 and torch.equal(seen[-1].edit.direction, whole[-1].edit.direction)


def test_a_descent_of_other_settings_or_from_a_broken_file_begins_anew(model: WholeModel, examples: Examples, tmp_path: Path) -> None:
    _, _, in_all = descended(model, examples, ResumeStore(tmp_path))
    other = replace(SETTINGS, seed=4)
    assert descended(model, examples, ResumeStore(tmp_path), settings=other)[2] == in_all
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert descended(model, examples, ResumeStore(tmp_path), settings=other)[2] == in_all


def test_a_phase_that_was_over_early_is_over_after_a_stop_too(model: WholeModel, examples: Examples, tmp_path: Path) -> None:
    settings = Settings(steps=20, weights=(5.0, 5.0), batch=2, every=1, patience=2)

    def walked(kept: ResumeStore, looks: int = 99) -> list[int]:
        left = looks

        def look(plan: Edit) -> Point:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return Point(0.0, 0.0, 0.0, 0.0, 0.0)

        return [s.step for s in descend(model, Parameters.of(some_plan(model), 0.5, True), examples, look, cost, settings, store=kept)[0]]

    for looks in (2, 4):
        kept = ResumeStore(tmp_path / str(looks))
        with pytest.raises(KeyboardInterrupt):
            walked(kept, looks)
        assert walked(kept) == [1, 2, 3, 4, 5, 6]


def test_examples_of_replies_that_were_kept_are_the_same(model: WholeModel, examples: Examples) -> None:
    heard: list[float] = []
    replies = short_replies(model, PROMPTS)
    again = examples_of(model, PROMPTS, heard.append, replies)
    assert sum(heard) <= examples_work(PROMPTS, replied=PROMPTS) < examples_work(PROMPTS)
    assert again.target == examples.target and again.others == examples.others and again.marks == examples.marks
    for role, stay in examples.stays.items():
        assert again.stays[role].asked == stay.asked and torch.equal(again.stays[role].predicted.logprobs, stay.predicted.logprobs)


def test_no_hook_is_left_behind(model: WholeModel, examples: Examples) -> None:
    ids = [[5, 6, 7, 8]]
    before = next(iter(model.logits([Pass(ids)])))[2]
    point = Point(0.0, 0.0, 0.0, 0.0, 0.0)
    descend(model, Parameters.of(some_plan(model), 0.5, True), examples, lambda plan: point, cost, Settings(steps=1, batch=2))
    assert torch.equal(next(iter(model.logits([Pass(ids)])))[2], before)
    assert not torch.equal(next(iter(model.logits([Pass(ids, Intervention(some_plan(model)))])))[2], before)


def test_refusals_of_keep_prompts_fall_less_than_if_only_their_drift_counted(
    model: WholeModel, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edit removes what the target and the keep prompts share, at hardly any weight of drift."""
    keep = examples.stays["keep"]
    shared = replace(
        examples,
        target=replace(examples.target, prompts=list(keep.asked.prompts), openings=[list(r[:ALIKE]) for r in keep.asked.continuations]),
        others=[[] for _ in keep.asked.prompts],
        behind=[[] for _ in keep.asked.prompts],
        later=[[] for _ in keep.asked.prompts],
        marks=[0] * len(keep.asked.prompts),
    )

    def left() -> float:
        """The mean log-probability of the keep prompts' replies after a descent."""
        settings = Settings(steps=8, weights=(1e-3,), batch=6, every=8, strength_rate=0.1, turn=0.3, near=0.0, few=0.0)
        parameters = Parameters.of(some_plan(model), 0.5, True)
        descend(model, parameters, shared, lambda plan: Point(0.0, 0.0, 0.0, 0.0, 0.0), cost, settings)
        said = Continued(keep.asked.prompts, [reply[:ALIKE] for reply in keep.asked.continuations])
        ((_, indices, rows),) = list(model.logits([said.passed(Intervention(parameters.baked()))]))
        return float(said.logprobs(indices, rows).mean())

    held = left()
    monkeypatch.setattr("abliterate.choice.tuning.descent.fallen", lambda base, edited: edited.sum() * 0)
    assert left() < held - 0.5


@pytest.mark.parametrize(("wider", "metric"), [(64, False), (576, False), (4096, False), (64, True), (576, True)])
def test_a_model_carried_into_a_wider_stream_is_tuned_to_the_same_edit(
    model: WholeModel, examples: Examples, tmp_path: Path, wider: int, metric: bool
) -> None:
    carry = widen(model.folder.path, tmp_path / "wide", wider)
    wide = load_model(tmp_path / "wide", "float32", "cpu")
    settings = Settings(steps=4, weights=(2.0,), batch=6, every=2)
    found = []
    for each, there in ((model, torch.eye(model.folder.d_model)), (wide, carry)):
        plan = some_plan(model)
        start = replace(plan, direction=plan.direction @ there.T)
        own = examples_of(each, PROMPTS)
        assert own.target == examples.target  # the same replies
        basis = coordinates(costs_of(each, own), start.direction) if metric else None
        parameters = Parameters.of(start, 0.5, True, basis=basis)
        found.append(descend(each, parameters, own, lambda p: measure(each, [p], own)[0], cost, settings)[0])  # noqa: B023
    for narrow_seen, wide_seen in zip(*found, strict=True):
        assert wide_seen.point.objectives == pytest.approx(narrow_seen.point.objectives, rel=1e-3)
        cosine = ((narrow_seen.edit.direction @ carry.T) * wide_seen.edit.direction).sum(-1)
        assert cosine.min() > 1 - 1e-4  # each direction turned by the same angle, the same way
        assert torch.allclose(narrow_seen.edit.strength, wide_seen.edit.strength, atol=1e-4)


def costs_of(model: WholeModel, examples: Examples) -> Tensor:
    costs = first_order(model, examples, 0, None, 0)[1]
    assert costs is not None
    return costs


def test_replies_that_begin_alike_tell_nothing_by_it() -> None:
    alike = [[9, 8, n, n] for n in range(30)]
    assert led_by(alike) == 2 and led_by([*alike, [1, 2, 3]]) == 2 and led_by([*alike, *[[n, n] for n in range(5)]]) == 0
    assert led_by([[9, 8]] * 4) == 1 and led_by([[9], [9, 8]]) == 0 and led_by([]) == 0


def test_behind_a_common_beginning_the_first_token_is_the_one_that_differs(model: WholeModel, examples: Examples) -> None:
    led = replace(examples, stays={role: replace(stay, lead=1) for role, stay in examples.stays.items()})
    plan = some_plan(model)
    (first,), (second,) = measure(model, [plan], examples), measure(model, [plan], led)
    assert second.kl != first.kl and second.keep_kl == first.keep_kl and second.target_left == first.target_left
    stay: Stay = led.stays["harmless"]
    assert [stay.first(i) for i in range(len(stay.asked.continuations))] == [min(1, len(c) - 1) for c in stay.asked.continuations]
