"""Who estimates, who chooses, who is reported on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.errors import InputError
from abliterate.prompts import Prompt, PromptSet, Split, load_asked, load_set
from abliterate.prompts.split import check_contrast, check_disjoint, with_splits


def prompts(n: int, start: int = 0) -> list[Prompt]:
    return [Prompt(f"p-{i}", f"question number {i}") for i in range(start, start + n)]


def group(name: str, *texts: str, split: Split = "train") -> PromptSet:
    return PromptSet(name, tuple(Prompt(f"{name}-{i}", text, split=split) for i, text in enumerate(texts)))


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 300))
def test_every_split_is_filled_and_the_shares_are_held(n: int) -> None:
    count = Counter(p.split for p in with_splits(prompts(n), "x"))
    assert sum(count.values()) == n and set(count) == {"train", "val", "test"}
    assert abs(count["train"] - 0.4 * n) <= 1 and abs(count["val"] - 0.15 * n) <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 80), st.integers(0, 1000))
def test_a_texts_split_does_not_depend_on_the_order_or_the_ids(n: int, seed: int) -> None:
    given_order = {p.text: p.split for p in with_splits(prompts(n), "x")}
    shuffled = [replace(p, id=f"other-{i}") for i, p in enumerate(Random(seed).sample(prompts(n), n))]
    assert {p.text: p.split for p in with_splits(shuffled, "x")} == given_order


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 30), min_size=3, max_size=20), st.integers(0, 1000))
def test_a_topic_is_in_one_split_only_and_every_split_is_filled(sizes: list[int], seed: int) -> None:
    topics = [f"topic {seed} {number}" for number, size in enumerate(sizes) for _ in range(size)]
    dealt = with_splits([replace(p, topic=topic) for p, topic in zip(prompts(len(topics)), topics, strict=True)], "x")
    splits = {topic: {p.split for p in dealt if p.topic == topic} for topic in topics}
    assert all(len(found) == 1 for found in splits.values())
    assert {p.split for p in dealt} == {"train", "val", "test"}
    largest = max(sizes)
    assert abs(sum(p.split == "train" for p in dealt) - 0.4 * len(dealt)) <= 2 * largest + 1


def with_splits_by_text(made: list[Prompt]) -> tuple[Prompt, ...]:
    bare = with_splits([replace(p, topic=None) for p in made], "x")
    return tuple(replace(p, split=b.split) for p, b in zip(made, bare, strict=True))


def test_two_topics_can_not_fill_three_splits_and_are_dealt_by_text() -> None:
    made = [replace(p, topic=str(i % 2)) for i, p in enumerate(prompts(20))]
    assert with_splits(made, "x") == with_splits_by_text(made)


def test_twins_are_dealt_alike() -> None:
    hot = [Prompt(f"hot-{i}", f"why {i}", pair=f"cold-{i}") for i in range(40)]
    cold = [Prompt(f"cold-{i}", f"how {i}", pair=f"hot-{i}") for i in range(40)]
    assert [p.split for p in with_splits(hot, "x")] == [p.split for p in with_splits(cold[::-1], "x")][::-1]


def test_the_order_of_the_prompts_is_kept() -> None:
    assert [p.id for p in with_splits(prompts(20), "x")] == [p.id for p in prompts(20)]


def test_fewer_than_four_prompts_are_too_few() -> None:
    with pytest.raises(InputError, match=r"three\.txt: 3 prompts are too few.*at least 4"):
        with_splits(prompts(3), "three.txt")
    with pytest.raises(InputError, match=r"one\.txt: 1 prompt is too few"):
        with_splits(prompts(1), "one.txt")


@pytest.mark.parametrize("n", [1, 3, 4, 20])
def test_a_set_that_is_only_asked_needs_no_four_prompts_and_is_the_same_where_it_has_them(tmp_path: Path, n: int) -> None:
    file = tmp_path / "asked.txt"
    file.write_text("\n".join(p.text for p in prompts(n)), encoding="utf-8")
    asked = load_asked(str(file))
    assert len(asked) == n and not asked.own_splits
    if n >= 4:
        assert asked == load_set(str(file))


def test_own_splits_are_kept_even_when_one_sided() -> None:
    own = [replace(p, split="train") for p in prompts(2)]
    assert with_splits(own, "x") == tuple(own)


def test_a_set_in_which_only_some_prompts_name_a_split_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "partial.csv"
    file.write_text("text,split\na,train\nb,\nc,test\nd,\ne,val\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"partial\.csv: 2 of 5 prompts have no split; give every prompt one, or none"):
        load_set(str(file))


def test_own_and_dealt_splits_are_told_apart(tmp_path: Path) -> None:
    own, dealt = tmp_path / "own.csv", tmp_path / "dealt.txt"
    own.write_text("text,split\na,train\n", encoding="utf-8")
    dealt.write_text("a\nb\nc\nd\n", encoding="utf-8")
    assert load_set(str(own)).own_splits and not load_set(str(dealt)).own_splits


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_text_that_estimates_or_chooses_may_not_be_reported_on(split: Split) -> None:
    with pytest.raises(InputError, match=r"'b-0' of b \(test\) is also 'a-0' of a"):
        check_disjoint([group("a", "What is  IT?", split=split), group("b", "what is it?", split="test")])


def test_a_test_text_may_not_stand_before_its_train_copy_either() -> None:
    with pytest.raises(InputError, match="would prove nothing"):
        check_disjoint([group("a", "q", split="test"), group("b", "q", split="train")])


def test_the_same_text_in_test_of_two_sets_is_allowed() -> None:
    check_disjoint([group("a", "q", split="test"), group("b", "q", split="test"), group("c", "r")])


def test_the_same_prompts_as_target_and_baseline_are_refused() -> None:
    with pytest.raises(InputError, match=r"the same prompts.*--baseline"):
        check_contrast([group("a", "q", "r")], [group("b", "R", "Q", "s")])


def test_prompts_that_target_and_baseline_share_are_counted_and_the_first_shown() -> None:
    with pytest.raises(InputError, match=r"1 prompts are in target and in baseline.*'Q'"):
        check_contrast([group("a", "q", "r")], [group("b", "s", "Q")])


def test_one_shared_prompt_in_two_baselines_does_not_make_the_sets_the_same() -> None:
    with pytest.raises(InputError, match="are in target and in baseline"):
        check_contrast([group("a", "q", "r")], [group("b", "q", "s"), group("c", "q", "t")])


def test_sets_with_nothing_in_common_make_a_contrast() -> None:
    check_contrast([group("a", "q", "r")], [group("b", "s", "t")])
