"""What edited models say joins the examples: their openings, if they withhold, and never those that answers begin with too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import save_tiny

from abliterate.choice.openings import OPENING_TOKENS
from abliterate.choice.tuning import on_policy
from abliterate.choice.tuning.after_thought import Line
from abliterate.choice.tuning.descent import Settings, _Deck, descend
from abliterate.choice.tuning.examples import OTHERS, Examples, examples_of
from abliterate.choice.tuning.measure import measure, target_left
from abliterate.choice.tuning.on_policy import Heard, OnPolicy, hear, later_lines
from abliterate.choice.tuning.openings import ALIKE
from abliterate.choice.tuning.parameters import Parameters
from abliterate.choice.tuning.state import Seen, Step
from abliterate.compute.passes import Intervention, Pass
from abliterate.compute.whole.model import WholeModel, load_model, shared_below
from abliterate.model.edit import Edit, edit_from_rows
from abliterate.prompts import Prompt, Role
from abliterate.runs.resume import NO_STORE, ResumeStore

SAID = "I can't."
PROMPTS: dict[Role, list[Prompt]] = {
    "target": [
        *[Prompt(f"t{i}", f"Burn the {word}!", "en") for i, word in enumerate(["stone", "river", "cloud", "paper"])],
        Prompt("t4", "烧石头", "zh"),
    ],
    "baseline": [Prompt(f"b{i}", f"Draw {i}.", "en") for i in range(4)],
    "harmless": [Prompt(f"h{i}", f"Name {i}", "en") for i in range(3)],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    return load_model(save_tiny(Path(tmp_path_factory.mktemp("on-policy")) / "m", says=SAID), "float32", "cpu")


@pytest.fixture(scope="module")
def examples(model: WholeModel) -> Examples:
    found = examples_of(model, PROMPTS)
    assert len(found.asked) == 5 and all(list(o) == list(found.target.openings[0]) for o in found.target.openings)
    return found


def edit_of(model: WholeModel, strength: float, seed: int = 0) -> Edit:
    rows = torch.randn(model.folder.layers, 1, model.folder.d_model, generator=torch.Generator().manual_seed(seed))
    return edit_from_rows(rows, torch.full((model.folder.layers, 2), strength))


def heard(place: int, first: int, withholds: bool = True, thought: Sequence[int] = ()) -> Heard:
    return Heard(place, Line(list(thought), [first] * OPENING_TOKENS), withholds)


def firsts(lines: Sequence[Sequence[Line]]) -> list[list[int]]:
    return [[line.tokens[0] for line in each] for each in lines]


def test_an_edit_of_no_strength_says_nothing_new(model: WholeModel, examples: Examples) -> None:
    known = OnPolicy(model, examples, examples)
    assert hear(model, edit_of(model, 0.0), examples) == [
        Heard(i, Line([], opening), True) for i, opening in enumerate(examples.target.openings)
    ]
    assert known.after(edit_of(model, 0.0)).later == [[]] * 5 and known.val is examples


def test_only_replies_of_the_edited_model_are_heard(model: WholeModel, examples: Examples) -> None:
    edit = edit_of(model, 1.0)
    asked = Pass(examples.target.prompts, Intervention(edit))
    replies = {i: said for _, indices, found in model.replies([asked], 24) for i, said in zip(indices, found, strict=True)}
    for each in hear(model, edit, examples):
        assert list(each.line.tokens) == replies[each.place][:OPENING_TOKENS]


def test_a_prompts_own_new_opening_comes_before_those_of_others(examples: Examples) -> None:
    lines = later_lines(examples, [heard(0, 7), heard(1, 8), heard(2, 8), heard(3, 9)])
    assert firsts(lines) == [[7, 8, 9], [8, 7, 9], [8, 7, 9], [9, 8, 7], []]


def test_at_most_four_openings_of_others_are_tried(examples: Examples) -> None:
    assert [len(each) for each in later_lines(examples, [heard(0, 10 + i) for i in range(9)])] == [9, OTHERS, OTHERS, OTHERS, 0]


def test_an_opening_that_is_known_is_not_learned_again(examples: Examples) -> None:
    own = Heard(0, Line([], [*examples.target.openings[0][:ALIKE], 1, 2]), True)
    assert later_lines(examples, [own]) == [[]] * 5
    assert firsts(later_lines(examples, [heard(0, 7), heard(0, 7)]))[0] == [7]


@pytest.mark.parametrize(("answered", "kept"), [(0, True), (1, True), (2, False), (3, False)])
def test_an_opening_that_answers_share_is_left_out(examples: Examples, answered: int, kept: bool) -> None:
    said = [heard(0, 7), heard(1, 7), *[heard(2, 7, withholds=False)] * answered]
    assert (firsts(later_lines(examples, said))[3] == [7]) is kept


def test_a_line_after_a_thought_stays_with_its_prompt(examples: Examples) -> None:
    lines = later_lines(examples, [heard(0, 7, thought=[5, 6])])
    assert [(list(line.thought), line.tokens[0]) for line in lines[0]] == [([5, 6], 7)] and lines[1:] == [[]] * 4


def test_what_is_learned_later_is_dealt_and_measured(model: WholeModel, examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_policy, "hear", lambda *_: [heard(0, 7), heard(1, 8)])
    known = OnPolicy(model, examples, examples)
    deck = _Deck(examples, 5, 0)
    before = {card.reply[0] for step in range(8) for card in deck.deal(step) if card.role == "target"}
    deck.examples = known.after(edit_of(model, 1.0))
    after = {card.reply[0] for step in range(8) for card in deck.deal(step) if card.role == "target"}
    assert after - before == {7, 8}
    edits = [edit_of(model, 0.0), edit_of(model, 1.0)]
    assert target_left(model, edits, known.val)[0] == pytest.approx(1.0, abs=1e-5)  # the unedited model's share of these openings too
    openings = known.val.openings.asked
    assert len(openings.prompts) == 5 + 2 * 4 and known.val.likely >= examples.likely - 1e-6

    def likely(edit: Edit) -> float:
        left = torch.zeros(5)
        for _, indices, logits in model.logits([openings.passed(Intervention(edit))]):
            for index, logprob in zip(indices, openings.logprobs(indices, logits), strict=True):
                left[known.val.openings.prompts[index]] += logprob.exp()
        return float(left.mean())

    assert target_left(model, edits, known.val)[1] * known.val.likely == pytest.approx(likely(edits[1]), rel=1e-4)
    assert measure(model, edits, known.val)[1].target_left == pytest.approx(target_left(model, edits, known.val)[1], rel=1e-5)


def test_streams_below_the_edit_are_shared_with_what_is_learned_later(
    model: WholeModel, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_policy, "hear", lambda *_: [heard(0, 7)])
    edit = replace(edit_of(model, 1.0), strength=torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]))
    known = OnPolicy(model, examples, examples)
    with shared_below(model, 2, [list(ids) for ids in examples.openings.asked.passed().sequences]):
        known.after(edit)
        below = model.__dict__["below"]
        assert below.serves(Intervention(edit), known.val.openings.asked.passed().sequences)
        shared = target_left(model, [edit], known.val)[0]
    assert shared == pytest.approx(target_left(model, [edit], known.val)[0], rel=1e-4)


@pytest.mark.parametrize("stopped", [2, 3, 4, 5])
def test_a_stopped_descent_hears_nothing_twice(
    model: WholeModel, examples: Examples, tmp_path: Path, stopped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = hear, 0

    def counted(*arguments: object) -> list[Heard]:
        nonlocal calls
        calls += 1
        found = real(*arguments)  # type: ignore[arg-type]
        return [replace(each, line=Line([], [7 + calls % 3] * 8)) for each in found]

    monkeypatch.setattr(on_policy, "hear", counted)

    def tuned(store: ResumeStore, looks: int = 99) -> tuple[list[Seen], list[Step]]:
        nonlocal calls
        calls = 0 if looks == 99 and store is NO_STORE else calls
        known = OnPolicy(model, examples, examples, store)
        seen: list[Edit] = []

        def look(edit: Edit) -> object:
            if len(seen) == looks:
                raise KeyboardInterrupt
            seen.append(edit)
            return measure(model, [edit], known.val)[0]

        settings = Settings(steps=2, weights=(2.0, 5.0, 9.0), batch=3, every=1, patience=9)
        parameters = Parameters.of(edit_of(model, 1.0), 0.5, True)
        return descend(model, parameters, examples, look, lambda point: point.kl, settings, store=store, after=known.after)  # type: ignore[arg-type]

    whole = tuned(NO_STORE)
    calls = 0
    store = ResumeStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        tuned(store, stopped)
    seen, steps = tuned(store)
    assert calls == 6  # train and val, after each of three phases
    assert [s.target for s in steps] == pytest.approx([s.target for s in whole[1]], rel=1e-5)
    assert [s.point.target_left for s in seen] == pytest.approx([s.point.target_left for s in whole[0]], rel=1e-4)
