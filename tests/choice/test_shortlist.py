"""The choice among candidates with hand-made scores."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.choice.candidates import Candidate
from abliterate.choice.scores import Scores
from abliterate.choice.shortlist import MAX_STAYS, choose
from abliterate.errors import InputError
from abliterate.model.edit import edit_from_direction

CANDIDATE = Candidate("c", "single", "projected", -1, 0, edit_from_direction(torch.ones(4), 2), torch.ones(4), 0)
NAN, INF = float("nan"), float("inf")
SCORES = st.builds(Scores, st.floats(-20, 0), st.floats(0, 1), st.floats(-5, 5), st.floats(0, 10))


def _scored(*scores: Scores) -> list[tuple[Candidate, Scores]]:
    return [(CANDIDATE, s) for s in scores]


def _good(bypass: float = -5.0, stays: float = 0.0, induce: float = 1.0, kl: float = 0.01) -> Scores:
    return Scores(float(bypass), stays, induce, kl)


class Finite(list[tuple[Candidate, Scores]]):
    """A list that may be read only so often: a choice without an end fails instead of hanging."""

    reads = 0

    def __iter__(self) -> Iterator[tuple[Candidate, Scores]]:
        self.reads += 1
        assert self.reads < 5000, "the choice does not end"
        return super().__iter__()


def test_the_lowest_bypass_wins_where_all_pass() -> None:
    choice = choose(_scored(_good(-3), _good(-9), _good(-5)), 0.1)
    assert (choice.chosen, choice.max_kl, choice.relaxed) == (1, 0.1, ())


def test_all_that_pass_are_listed_by_bypass_the_chosen_one_first() -> None:
    choice = choose(_scored(_good(-3), _good(-9), _good(-9.5, kl=2.0), _good(-5)), 0.1)
    assert choice.passing == (1, 3, 0)


def test_kl_is_relaxed_on_until_enough_have_a_chance_to_give_full_replies() -> None:
    scored = _scored(_good(-3, kl=0.05), _good(-4, kl=0.15), _good(-5, kl=0.35), _good(-6, kl=0.7))
    assert choose(scored, 0.1).passing == (0,)
    choice = choose(scored, 0.1, enough=2)
    assert (choice.passing, choice.max_kl, choice.relaxed) == (
        (1, 0),
        0.2,
        ("candidates may have a first-token KL of up to 0.2 nats, not 0.1",),
    )
    assert choose(scored, 0.1, enough=3).passing == choose(scored, 0.1, enough=4).passing == (2, 1, 0)


def test_the_first_wins_a_tie() -> None:
    assert choose(_scored(_good(-3), _good(-3)), 0.1).chosen == 0


@pytest.mark.parametrize(
    "bad", [_good(-9, kl=0.1), _good(-9, kl=2.0), _good(-9, induce=0.0), _good(-9, induce=-1.0), _good(-9, stays=0.11)]
)
def test_a_candidate_that_fails_a_filter_loses_to_a_worse_one_that_passes(bad: Scores) -> None:
    choice = choose(_scored(bad, _good(-1)), 0.1)
    assert (choice.chosen, choice.relaxed) == (1, ())


def test_the_bound_on_stays_is_inclusive() -> None:
    assert choose(_scored(_good(-9, stays=MAX_STAYS), _good(-1)), 0.1).chosen == 0


def test_kl_is_relaxed_first_by_doubling() -> None:
    choice = choose(_scored(_good(-9, kl=0.35), _good(-1, kl=0.25), _good(-20, stays=1.0, kl=0.0)), 0.1)
    assert choice.chosen == 0
    assert choice.max_kl == 0.4
    assert choice.relaxed == ("candidates may have a first-token KL of up to 0.4 nats, not 0.1",)


def test_doubling_stops_at_the_first_bound_that_something_passes() -> None:
    assert choose(_scored(_good(-9, kl=0.35), _good(-1, kl=0.15)), 0.1).chosen == 1


def test_then_the_openings_filter_goes_and_kl_starts_again() -> None:
    choice = choose(_scored(_good(-9, stays=0.5, kl=0.05), _good(-20, stays=0.5, kl=0.5), _good(-30, induce=-1.0)), 0.1)
    assert choice.chosen == 0
    assert choice.max_kl == 0.1
    assert len(choice.relaxed) == 1 and "leaves more than 10 %" in choice.relaxed[0]


def test_then_the_induce_filter_goes() -> None:
    choice = choose(_scored(_good(-9, stays=0.5, induce=-1.0), _good(-3, stays=0.5, induce=0.0)), 0.1)
    assert choice.chosen == 0
    assert any("when it is added" in line for line in choice.relaxed) and any("leaves more than 10 %" in line for line in choice.relaxed)


def test_an_induce_filter_that_alone_fails_keeps_the_openings_filter_or_says_so() -> None:
    choice = choose(_scored(_good(-9, stays=0.5, induce=-1.0), _good(-3, stays=0.0, induce=-1.0)), 0.1)
    assert choice.chosen == 1 or any("leaves more than 10 %" in line for line in choice.relaxed)


@pytest.mark.parametrize(
    "scores",
    [
        [_good(kl=INF)],
        [_good(kl=INF), _good(-9, kl=INF)],
        [_good(kl=NAN)],
        [_good(kl=INF, stays=1.0, induce=-1.0)],
        [_good(kl=INF), _good(kl=0.5, stays=1.0)],
        [_good(induce=NAN)],
        [_good(stays=NAN)],
    ],
)
def test_the_choice_ends_whatever_the_scores(scores: list[Scores]) -> None:
    finite = [i for i, s in enumerate(scores) if all(math.isfinite(v) for v in vars(s).values())]
    if not finite:
        with pytest.raises(InputError, match="finite"):
            choose(Finite(_scored(*scores)), 0.1)
        return
    choice = choose(Finite(_scored(*scores)), 0.1)
    assert choice.chosen in finite
    assert choice.relaxed
    assert len(choice.relaxed) < 30


def test_a_bypass_that_is_not_a_number_loses() -> None:
    assert choose(_scored(_good(NAN), _good(-1)), 0.1).chosen == 1


@settings(max_examples=150, deadline=None)
@given(st.lists(SCORES, min_size=1, max_size=8), st.floats(1e-3, 1))
def test_an_unrelaxed_choice_passes_every_filter_and_is_the_best_that_does(scores: list[Scores], max_kl: float) -> None:
    choice = choose(Finite(_scored(*scores)), max_kl)
    passing = [i for i, s in enumerate(scores) if s.kl < max_kl and s.stays <= MAX_STAYS and s.induce > 0]
    assert bool(choice.relaxed) == (not passing)
    assert scores[choice.chosen].kl < choice.max_kl
    if passing:
        assert scores[choice.chosen].bypass == min(scores[i].bypass for i in passing)
