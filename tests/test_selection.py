"""The choice among edits that have given full replies."""

from __future__ import annotations

import torch

from abliterate.directions.candidates import Candidate
from abliterate.evaluation.rehearsal import Rehearsal
from abliterate.model.plan import plan_from_direction
from abliterate.selection import Tried

CANDIDATE = Candidate("c", "single", "projected", -1, 0, plan_from_direction(torch.ones(4), 2), torch.ones(4), 0)
BASE = Rehearsal(withheld=0.9, degenerate=0.1)


def test_an_edit_costs_what_it_leaves_withheld_what_it_breaks_and_what_it_moves() -> None:
    assert Tried(CANDIDATE, 1.0, 0.2, Rehearsal(0.1, 0.3)).cost(BASE) == 0.35
    assert Tried(CANDIDATE, 1.0, 0.0, Rehearsal(0.1, 0.05)).cost(BASE) == 0.1


def test_a_little_drift_does_not_outweigh_what_is_still_withheld() -> None:
    assert Tried(CANDIDATE, 1.0, 0.3, Rehearsal(0.0, 0.1)).cost(BASE) < Tried(CANDIDATE, 1.0, 0.1, Rehearsal(0.1, 0.1)).cost(BASE)
