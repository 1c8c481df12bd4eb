"""Directions by first-order effect: they are what a small loss of them does, and nothing does more for what it costs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from conftest import save_tiny
from families import FAMILIES, VISION
from held import held
from hypothesis import example, given, settings
from hypothesis import strategies as st

from abliterate.choice.tuning.examples import Examples, examples_of
from abliterate.choice.tuning.first_order import RIDGES, best, first_order, work_of
from abliterate.choice.tuning.metric import damped
from abliterate.compute.passes import NO_INTERVENTION, Intervention
from abliterate.compute.whole.gradients import MicroBatch, logits
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.compute.whole.written import written
from abliterate.model.edit import edit_from_rows
from abliterate.prompts import Prompt, Role

CASES = {str(case): case for case in [*FAMILIES, *(case for case, _ in VISION)]}
SEQUENCES = [[5, 6, 7, 8, 9, 30 + n, 41, 12] for n in range(3)]


def score_of(model: WholeModel, intervention: Intervention) -> torch.Tensor:
    """A number that many logits of the last token have a part in."""
    signs = torch.tensor([1.0, -1.0]).repeat(10)  # so that the sum is small, and float32's rounding with it
    found = [(rows[:, -1].double()[:, 20:40] * signs).sum() for _, rows in logits(model, intervention, SEQUENCES, 1, MicroBatch(1 << 20))]
    return torch.stack(found).sum()


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_effect_is_what_a_small_loss_of_a_direction_does(name: str, unit_direction: Any) -> None:
    model = held(CASES[name], batch_size=3)
    layers, width, step = model.folder.layers, model.folder.d_model, 1e-3
    r = unit_direction(width)
    with written(model, range(layers)) as found:
        score_of(model, NO_INTERVENTION).backward()  # type: ignore[no-untyped-call]
        effects = [-sum(float((y @ r) @ (g @ r)) for y, g in found.of(layer)) for layer in range(layers)]
    assert any(effects)
    for layer, effect in enumerate(effects):
        strength = torch.zeros(layers, 2)
        strength[layer] = step
        edit = edit_from_rows(r.expand(layers, 1, -1), strength)
        with torch.no_grad():
            slope = float(score_of(model, Intervention(edit)) - score_of(model, Intervention(edit.scaled(-1.0)))) / (2 * step)
        assert effect == pytest.approx(slope, rel=2e-2, abs=1e-2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 24), st.integers(0, 2))
@example(20538, 2, 1)  # one direction is left: in float32, others that nearly lie along what is excluded are rounding errors
def test_no_direction_gains_more_for_what_it_costs(seed: int, width: int, away: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=draw, dtype=torch.float64)
    gain, tokens = normal(width, width), normal(3 * width, width)
    cost, ridge = tokens.T @ tokens, 10.0 ** -(seed % 4)
    off = torch.linalg.qr(normal(width, min(away, width - 1)))[0].T if away else None
    row, gained = best(gain, cost, ridge, off)
    shrunk = damped(cost, ridge)
    others = normal(200, width)
    if off is not None:
        assert float((off @ row.double()).abs().max()) < 1e-4
        others = others - others @ off.T @ off
    share = lambda rows: ((rows @ gain) * rows).sum(-1) / ((rows @ shrunk) * rows).sum(-1)  # noqa: E731
    assert float(row.norm()) == pytest.approx(1, abs=1e-5) and gained == pytest.approx(
        float(row.double() @ gain @ row.double()), rel=1e-3, abs=1e-5
    )
    most = float(share(others).max())
    assert float(share(row[None].double())) >= most - 1e-3 * abs(most) - 1e-5


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> tuple[WholeModel, Examples]:
    model = load_model(save_tiny(tmp_path_factory.mktemp("first") / "m", says="I won't."), "float32", "cpu")
    roles: tuple[Role, ...] = ("target", "baseline", "harmless", "keep")
    return model, examples_of(model, {role: [Prompt(f"{role}{n}", f"{role} number {n}", "en") for n in range(4)] for role in roles})


@pytest.mark.parametrize("keep", [True, False])
def test_only_blocks_from_the_first_up_are_edited_and_all_work_is_told(refusing: tuple[WholeModel, Examples], keep: bool) -> None:
    model, examples = refusing
    if not keep:
        examples = replace(examples, stays={role: stay for role, stay in examples.stays.items() if role != "keep"})
    told: list[int] = []
    edits, costs = first_order(model, examples, 1, None, 0, told.append)
    assert len(edits) == len(RIDGES) and sum(told) == work_of(model, examples, 1)
    assert costs is not None and costs[1:].flatten(1).any(-1).all() and not costs[0].any()
    assert not any(edit.strength[0].any() for edit in edits) and any(edit.strength[1:].any() for edit in edits)


def test_in_parts_the_blocks_are_the_same(refusing: tuple[WholeModel, Examples], monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = refusing
    whole, costs = first_order(model, examples, 1, None, 0)
    monkeypatch.setattr("abliterate.choice.tuning.first_order.free", lambda device: 1.0)  # one block at once
    again, others = first_order(model, examples, 1, None, 0)
    assert others is None and costs is not None  # they fit into memory one block at a time only
    for edit, other in zip(whole, again, strict=True):
        torch.testing.assert_close(
            (edit.direction * other.direction).sum(-1).abs(), torch.ones(model.folder.layers, 2, 1), atol=1e-3, rtol=0
        )


def test_directions_stay_off_the_keep_sets_axes(refusing: tuple[WholeModel, Examples], unit_direction: Any) -> None:
    model, examples = refusing
    away = unit_direction(model.folder.d_model).expand(model.folder.layers, 1, -1)
    for edit in first_order(model, examples, 1, away, 0)[0]:
        assert float((edit.direction[1:] @ away[0, 0]).abs()[edit.strength[1:] > 0].max()) < 1e-4
