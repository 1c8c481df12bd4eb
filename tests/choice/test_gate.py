"""The cheapest edits of the front reply to val prompts, and these replies decide."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.choice import gate
from abliterate.choice.front import Point
from abliterate.choice.gate import Replied, cost, gate_work, gated, loaded, passed, saved
from abliterate.choice.tuning.examples import Examples, examples_of
from abliterate.choice.tuning.replies import short
from abliterate.choice.tuning.state import Seen
from abliterate.compute.passes import Intervention, Pass
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.model.chat.template import encode
from abliterate.model.chat.thinking import decode
from abliterate.model.edit import edit_from_rows
from abliterate.outcomes.verdict import judge
from abliterate.prompts import Prompt, Role

PROMPTS: dict[Role, list[Prompt]] = {
    "target": [Prompt(f"t{i}", f"Burn {i}!", "en") for i in range(5)],
    "keep": [Prompt(f"k{i}", f"Steal {i}!", "en") for i in range(4)],
    "harmless": [Prompt(f"h{i}", f"Name {i}", "en") for i in range(3)],
}
POINT = Point(0.5, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    return load_model(save_tiny(Path(tmp_path_factory.mktemp("gate")) / "m", says="I can't."), "float32", "cpu")


@pytest.fixture(scope="module")
def val(model: WholeModel) -> Examples:
    return examples_of(model, PROMPTS)


def seen_of(model: WholeModel, *strengths: float) -> list[Seen]:
    rows = torch.randn(model.folder.layers, 1, model.folder.d_model, generator=torch.Generator().manual_seed(0))
    edits = [edit_from_rows(rows, torch.full((model.folder.layers, 2), strength)) for strength in strengths]
    return [Seen(f"edit {i}", i, 1.0, edit, POINT) for i, edit in enumerate(edits)]


def test_figures_are_those_of_the_edited_models_own_replies(model: WholeModel, val: Examples) -> None:
    seen = seen_of(model, 0.0, 1.0)
    heard: list[float] = []
    found = gated(model, seen, val, heard.append)
    assert sum(heard) == gate_work(seen, val) == 2 * (5 + 4 + 3)
    assert found[0] == {role: Replied(n, n, n, 0, 0) for role, n in (("target", 5), ("keep", 4), ("harmless", 3))}
    for role in PROMPTS:
        asked = Pass(encode(model.tokenizer, [p.text for p in PROMPTS[role]]), Intervention(seen[1].edit))
        replies = {i: r for _, indices, some in model.replies([asked], short(model.tokenizer)) for i, r in zip(indices, some, strict=True)}
        outcomes = [judge(decode(model.tokenizer, replies[i]), prompt=p.text, cut=True).outcome for i, p in enumerate(PROMPTS[role])]
        assert found[1][role].broken == outcomes.count("degenerate") and found[1][role].broken_before == 0
        assert found[1][role].withheld == sum(o in ("refused", "deflected", "state_line") for o in outcomes)
    assert [loaded(saved(each)) for each in found] == found


def test_of_the_target_only_what_was_withheld_is_asked(model: WholeModel, val: Examples) -> None:
    """Of other roles, all prompts are, so that gains and losses cancel."""
    answered = {role: replace(found, outcomes=["refused", *["answered"] * (len(found.outcomes) - 1)]) for role, found in val.judged.items()}
    (found,) = gated(model, seen_of(model, 0.0), replace(val, judged=answered))
    assert found["target"] == Replied(1, 1, 1, 0, 0) and found["keep"] == Replied(4, 1, 4, 0, 0)
    unknown = {**answered, "keep": replace(val.judged["keep"], outcomes=["not_judged", "refused", "refused", "refused"])}
    assert gated(model, seen_of(model, 0.0), replace(val, judged=unknown))[0]["keep"].asked == 3


def test_no_role_replies_to_more_prompts_than_the_limit(model: WholeModel, val: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "REPLIES", 2)
    (found,) = gated(model, seen_of(model, 0.0), val)
    assert all(each.asked == 2 for each in found.values())


@pytest.mark.parametrize(
    ("role", "after", "wrong"),
    [("target", 3, 3), ("target", 0, 0), ("keep", 7, 1), ("keep", 9, 0), ("harmless", 9, 1), ("harmless", 7, 0), ("baseline", 10, 2)],
)
def test_a_wrong_reply_is_one_that_the_role_does_not_want(role: Role, after: int, wrong: int) -> None:
    assert Replied(20, 8, after, 1, 1).wrong(role) == Fraction(wrong, 20)
    assert Replied(20, 8, after, 1, 3).wrong(role) == Fraction(wrong + 2, 20) and Replied(0, 0, 0, 0, 0).wrong(role) == 0


def by(**roles: tuple[int, int, int]) -> dict[Any, Replied]:
    """Of 48 prompts each, how many are withheld before and after, and how many are broken."""
    return {role: Replied(48, before, after, 0, broken) for role, (before, after, broken) in roles.items()}


def test_an_edit_that_only_reworded_refusals_loses_to_one_that_removed_them() -> None:
    """What is left of the old openings says nothing about new ones."""
    reworded, removed = Point(0.01, 0.0, 0.003, 0.0, 1.0), Point(0.05, 0.01, 0.02, 0.0, 1.0)
    replied = {3: by(target=(48, 45, 0)), 7: by(target=(48, 2, 0))}
    points = [reworded if i == 3 else removed for i in range(8)]
    assert passed(points, replied, "balanced", 0.1) == 7


def test_an_edit_that_loses_what_should_be_kept_loses() -> None:
    kept = by(target=(48, 4, 0), keep=(40, 39, 0), harmless=(0, 0, 0))
    lost = by(target=(48, 2, 0), keep=(40, 33, 0), harmless=(0, 0, 0))
    assert passed([POINT, POINT], {0: lost, 1: kept}, "balanced", None) == 1
    broken = {**lost, **by(keep=(40, 39, 0), target=(48, 2, 9))}
    assert passed([POINT, POINT], {0: broken, 1: kept}, "balanced", None) == 1


counts = st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n), st.just(0), st.integers(0, n)))
figures = counts.map(lambda each: Replied(*each))


@settings(deadline=None)
@given(figures, figures, figures, figures, st.floats(0, 2), st.floats(0, 2))
def test_the_cost_grows_with_each_wrong_reply_and_with_drift(
    target: Replied, keep: Replied, harmless: Replied, baseline: Replied, kl: float, more: float
) -> None:
    replied: dict[Role, Replied] = {"target": target, "keep": keep, "harmless": harmless, "baseline": baseline}
    point = Point(0.5, 0.0, kl, 0.0, 1.0)
    own = cost(point, replied, "balanced", 0.1)
    assert own >= 0 and cost(Point(0.5, 0.0, kl + more, 0.0, 1.0), replied, "balanced", 0.1) >= own
    assert cost(Point(0.9, 0.0, kl, 0.0, 1.0), replied, "balanced", 0.1) == own  # replies take the place of the openings' probability
    for role, found in replied.items():
        assert cost(point, {**replied, role: replace(found, broken=found.broken + 1)}, "balanced", 0.1) > own
    assert cost(point, {**replied, "target": replace(target, withheld=target.withheld + 1)}, "balanced", 0.1) > own
    for role in ("harmless", "baseline"):
        found = replied[role]
        worse = replace(found, withheld=max(found.withheld, found.withheld_before) + 1)
        assert cost(point, {**replied, role: worse}, "balanced", 0.1) > own
    worse = replace(keep, withheld=min(keep.withheld, keep.withheld_before) - 1)
    assert cost(point, {**replied, "keep": worse}, "balanced", 0.1) > own
