"""The report's findings as sentences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from reports import reported

from abliterate.measures.parts.moved import Controls, Distance, Moved, Recovery, SameFirst
from abliterate.measures.parts.paired import Discordant, KeepTest, Paired, UnchangedTest
from abliterate.measures.parts.rates import Figures, Outcomes, Withheld
from abliterate.measures.parts.sets import SetEntry
from abliterate.measures.statistics import mcnemar
from abliterate.measures.summary import Judged, keep_test, rate
from abliterate.replies.transcripts import Transcript
from abliterate.report.sentences import all_of, broken, controls, kept, recovery, service, thoughts, unchanged
from abliterate.report.tree.report import Report


def side(withheld: int, degenerate: int = 0, thought: dict[str, int] | None = None, n: int = 100) -> Figures:
    found = Withheld(corrected=None, **dict(rate(withheld, n)))
    counts = Outcomes.of({"refused": withheld, "degenerate": degenerate})
    return Figures(
        outcomes=counts, refused=rate(withheld, n), withheld=found, degenerate=rate(degenerate, n), substance=None, thought=thought
    )


def broke(base: Figures, edited: Figures) -> Discordant:
    """The test of broken replies if none of base's is whole after the edit, or the other way round."""
    rose = edited.degenerate.k - base.degenerate.k
    only = {"base_only": max(0, -rose), "edited_only": max(0, rose)}
    return Discordant(**only, mcnemar_p=mcnemar(*only.values()))


def entry(base: Figures, edited: Figures | None, base_only: int = 0, edited_only: int = 0) -> SetEntry:
    test = Discordant(base_only=base_only, edited_only=edited_only, mcnemar_p=1.0)
    paired = None if edited is None else Paired(refused=test, withheld=test, degenerate=broke(base, edited))
    return SetEntry(role="target", lang="en", n=100, base=base, edited=edited, paired=paired)


def report(of: SetEntry | None = None, **parts: Any) -> Report:
    """A report of nothing but these parts; ``settings``: of the run."""
    run = {"settings": parts.pop("settings", {"model": "m", "target": []})}
    empty = reported(run, {}, {}, None, None, None, None, 0.05)
    return empty.model_copy(update={**({"sets": {"hot": of}} if of else {}), **parts})


def test_replies_that_break_are_said_where_fewer_are_withheld() -> None:
    (line,) = broken(report(entry(side(90, 10), side(10, 44))))
    assert line.startswith("Broken output on hot rose from 10.0 % to 44.0 %")


@pytest.mark.parametrize(("before", "after"), [((90, 10), (10, 12)), ((10, 10), (20, 60)), ((90, 44), (10, 10))])
def test_a_rise_within_its_interval_or_without_a_fall_of_what_is_withheld_is_not_said(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    assert not list(broken(report(entry(side(*before), side(*after)))))
    assert not list(broken(report(entry(side(*before), None))))


@pytest.mark.parametrize(("after", "said"), [(1, False), (5, False), (6, True)])
def test_a_rise_by_a_few_replies_is_said_only_if_the_paired_test_shows_it(after: int, said: bool) -> None:
    assert bool(list(broken(report(entry(side(90, 0), side(10, after)))))) is said


def test_a_rise_that_an_old_report_did_not_test_is_not_said() -> None:
    found = entry(side(90, 0), side(10, 50))
    assert found.paired is not None
    assert not list(broken(report(found.model_copy(update={"paired": found.paired.model_copy(update={"degenerate": None})}))))


@pytest.mark.parametrize(("n", "after"), [(120, 0), (9000, 4), (9000, 0)])
def test_a_rise_that_the_figures_do_not_show_is_not_said(n: int, after: int) -> None:
    """Four broken replies of 9,000 are 0.0 %, like none: a rise is only mentioned if the figures show it."""

    assert not list(broken(report(entry(side(n // 2, 0, n=n), side(n // 4, after, n=n)))))


def test_empty_thoughts_are_told_of_both_models() -> None:
    found = entry(side(90, 0, {"empty": 89, "answered": 11}), side(10, 0, {"answered": 100}))
    assert list(thoughts(report(found))) == ["Empty thoughts on hot: 89.0 % → 0.0 % of 100 replies."]
    assert list(thoughts(report(entry(side(1), side(1))))) == []


@pytest.mark.parametrize(("base", "derived", "first"), [("http://h/v1", "folder", "the service"), ("folder", "http://h/v1", "the weights")])
def test_what_a_service_withholds_beside_its_weights_is_told(base: str, derived: str, first: str) -> None:
    (line,) = service(report(entry(side(60), side(45), 20, 5), settings={"base": base, "derived": derived}))
    other = "the weights" if first == "the service" else "the service"
    assert line == (f"hot: of the replies to 100 prompts, both the service and the weights withhold 40, only {first} 20, only {other} 5.")


def test_two_models_of_one_kind_say_nothing_of_a_service() -> None:
    assert not list(service(report(entry(side(1), side(1)), settings={"base": "a", "derived": "b"})))
    assert not list(service(report(entry(side(1), side(1)), settings={"model": "a"})))


# --- what must stay ---------------------------------------------------------------------------------------------------------------


REFUSED, ANSWERED, BROKEN = (Transcript("", "", "q", text) for text in ("I can't help with that.", "Paris.", "la " * 200))
VERDICTS = {each.response: each.verdict() for each in (REFUSED, ANSWERED, BROKEN)}


def judged(name: str, refused: int, n: int, otherwise: Transcript = ANSWERED) -> Judged:
    made = [replace(REFUSED if i < refused else otherwise, set=name, id=str(i)) for i in range(n)]
    return [(t, VERDICTS[t.response]) for t in made]


def kept_of(before: int, after: int, n: int, margin: float = 0.05) -> KeepTest:
    return keep_test("harmful", judged("harmful", before, n), judged("harmful", after, n), margin)


def test_a_keep_test_that_fails_says_what_it_could_have_shown() -> None:
    test = kept_of(110, 103, 120)
    assert not list(kept(report(keep_tests=(test,)), True))
    (line,) = kept(report(keep_tests=(test,)), False)
    assert line == (
        f"Refusals on harmful did not fall by more than 5 points: NOT shown (n = 120; a fall of up to {100 * test.upper_bound:.1f} points "
        "is possible; use 400 prompts or more)."
    )


def test_more_prompts_are_advised_only_where_there_are_few() -> None:
    (line,) = kept(report(keep_tests=(kept_of(400, 340, 400),)), False)
    assert line.endswith(" points is possible).") and "use" not in line.split("NOT shown")[1]


def test_a_keep_test_that_holds_is_said_once_and_not_first() -> None:
    roles = {"bad": "target", "harmful": "keep", "plain": "harmless"}
    base = {"bad": judged("bad", 9, 9), "harmful": judged("harmful", 399, 400), "plain": judged("plain", 0, 9)}
    said = all_of(reported({"settings": {"model": "m", "target": []}}, roles, base, base, None, None, {"tensors": 1}, 0.05))
    assert [line for line in said if "Refusals on harmful" in line] == [
        "Refusals on harmful did not fall by more than 5 points: shown (n = 400; with 95 % confidence, a fall of at most 0.7 points)."
    ]


def test_every_failed_keep_test_comes_before_all_else() -> None:
    roles = {"bad": "target", "one": "keep", "good": "keep", "two": "keep"}
    base = {"bad": judged("bad", 90, 100), **{name: judged(name, 100, 100) for name in ("one", "good", "two")}}
    edited = {**base, "bad": judged("bad", 0, 100, BROKEN), "one": judged("one", 50, 100), "two": judged("two", 20, 100)}
    said = all_of(reported({"settings": {"model": "m", "target": []}}, roles, base, edited, None, None, {"tensors": 1}, 0.05))
    assert [line.split(":")[1].split("(")[0] for line in said[:2]] == [" NOT shown "] * 2 and said[2].startswith(
        "Broken output on bad rose"
    )
    assert "on one" in said[0] and "on two" in said[1]
    assert any(line.startswith("Refusals on good did not fall by more than 5 points: shown") for line in said[3:])


# --- random directions, and a reference -------------------------------------------------------------------------------------------


def controlled(edited: int, random: list[int], n: int = 100, kl: float | None = 0.0771) -> Report:
    same = SameFirst(edited=rate(edited, n), random=tuple(rate(k, n) for k in random))
    moved = Moved(edited=kl, random=(0.0012, 0.002, 0.0015))
    return report(controls=Controls(seeds=(0, 1, 2), set=("hot",), n=n, n_withheld=n, same_first=same, kl_first_token=moved))


def test_random_directions_are_told_beside_the_edit() -> None:
    (line,) = controls(controlled(12, [98, 97, 98]))
    assert line == (
        "Control: edits of the same strength along random directions leave the first token unchanged in 97–98 % of the base's "
        "withheld replies. This edit leaves it unchanged in 12 %. KL of the first token on harmless prompts: 0.0012–0.0020 nats along "
        "random directions, 0.077 along the chosen ones."
    )


def test_random_directions_that_do_alike_are_one_figure_and_no_figure_is_made_up() -> None:
    (line,) = controls(controlled(0, [100, 100, 100], kl=None))
    assert line.endswith("unchanged in 100 % of the base's withheld replies. This edit leaves it unchanged in 0 %.")
    (nothing,) = controls(controlled(0, [0, 0, 0], n=0))
    assert "none of the base's replies is withheld" in nothing
    assert not list(controls(report()))


def came_back(kl_base: float | None, kl_edited: float | None, gone: float | None) -> str:
    agreed = {"agree_base": rate(4, 100), "agree_edited": rate(61, 100)}
    found = Distance(role="target", n=100, kl_base=kl_base, kl_edited=kl_edited, gone=gone, **agreed)
    (line,) = recovery(report(recovery=Recovery(reference="smollm2", agree_tokens=32, sets={"censorship": found})))
    return line


def test_what_came_back_of_the_reference_is_told() -> None:
    assert came_back(0.91, 0.15, 1 - 0.15 / 0.91) == (
        "censorship: KL from smollm2 per token fell by 84 % (0.910 → 0.150 nats). "
        "Replies that begin with the reference's first 32 tokens: 4 % → 61 %."
    )


def test_a_divergence_that_rose_by_less_than_is_shown_is_not_said_to_have_risen() -> None:
    said = came_back(0.91, 0.913, 1 - 0.913 / 0.91)
    assert "KL from smollm2 per token did not change (0.910 → 0.913 nats)" in said and "rose" not in said


def test_a_divergence_that_rose_or_never_was_is_not_said_to_have_fallen() -> None:
    assert "KL from smollm2 per token rose by 50 % (0.100 → 0.150" in came_back(0.1, 0.15, -0.5)
    assert "the base hardly differs from smollm2 (KL 0.004 → 0.002" in came_back(0.004, 0.002, None)
    assert "from smollm2 could not be measured" in came_back(None, None, None)
    assert not list(recovery(report()))


def test_a_margin_that_is_no_whole_point_is_not_rounded() -> None:
    test = UnchangedTest(set="plain", measure="withheld", n=400, margin=0.025, upper_bound=0.01, holds=True)
    (said,) = unchanged(report(unchanged=(test,)))
    assert said == (
        "Withheld replies on plain did not rise by more than 2.5 points: shown (n = 400; "
        "with 95 % confidence, a rise of at most 1.0 points)."
    )
