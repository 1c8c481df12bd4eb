"""The figures of ``scripts/bench widths``, on edits whose turns are known."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from isometric import isometry

from abliterate.choice.front import Point
from abliterate.choice.tuning.state import Seen
from abliterate.model.edit import Edit, edit_from_rows

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
from bench_widths import angles, compared  # noqa: E402


def turned(degrees: float) -> Edit:
    """Two blocks, whose directions stand at this angle to the first axis of a stream of four numbers."""
    angle = torch.deg2rad(torch.tensor(degrees))
    rows = torch.tensor([[angle.cos(), angle.sin(), 0.0, 0.0], [angle.cos(), 0.0, angle.sin(), 0.0]])
    return edit_from_rows(rows[:, None], torch.ones(2, 2))


def seen(edit: Edit, left: float) -> Seen:
    return Seen("tuned", 1, 1.0, edit, Point(left, 0.0, 0.01, 0.0, 0.0))


def test_edits_that_are_carried_along_are_the_same() -> None:
    carry = isometry(4, 9, 0).float()
    own = [seen(turned(degrees), 0.5) for degrees in (10, 20)]
    wide = [replace(each, edit=replace(each.edit, direction=each.edit.direction @ carry.T)) for each in own]
    found = compared(9, True, own, wide, turned(0), carry, 1.0)
    assert found.turns == pytest.approx([10, 20], abs=1e-2) and found.left == [0.5, 0.5] and found.kl == [0.01, 0.01]
    assert found.worst_cosine == pytest.approx(1, abs=1e-6) and found.strength == 0


def test_a_direction_that_turned_further_is_seen() -> None:
    found = compared(4, False, [seen(turned(10), 0.5)], [seen(turned(25), 0.4)], turned(0), torch.eye(4), 1.0)
    assert found.worst_cosine == pytest.approx(float(torch.cos(torch.deg2rad(torch.tensor(15.0)))), abs=1e-6)
    assert found.turns == pytest.approx([25], abs=1e-2)
    assert found.said().split() == ["4", "stream", "25.000", "0.40000", "3.4e-02", "0.0e+00", "1.0"]
    assert angles(turned(0).direction, turned(25).direction) == pytest.approx([25] * 4, abs=1e-2)
