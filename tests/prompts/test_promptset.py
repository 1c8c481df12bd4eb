"""Sets of prompts: splits, limits, hashes, normal form."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.prompts import Prompt, PromptSet
from abliterate.prompts.promptset import normalised


def numbered(n: int) -> PromptSet:
    return PromptSet("s", tuple(Prompt(f"s-{i}", f"q {i}", split="test" if i % 2 else "train") for i in range(n)))


def test_a_split_holds_its_prompts_in_file_order() -> None:
    assert [p.id for p in numbered(7).of("test")] == ["s-1", "s-3", "s-5"]


def test_a_split_that_no_prompt_names_is_empty() -> None:
    assert len(numbered(7).of("val")) == 0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(0, 40))
def test_a_limit_gives_that_many_prompts_or_all_of_them_evenly_spread(n: int, limit: int) -> None:
    whole = [p.id for p in numbered(n).of("test")]
    chosen = [p.id for p in numbered(n).of("test", limit)]
    assert len(chosen) == len(set(chosen)) == min(limit, len(whole))
    places = [whole.index(i) for i in chosen]
    assert places == sorted(places)
    gaps = [b - a for a, b in pairwise(places)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_limited_set_keeps_its_name_and_where_its_splits_are_from() -> None:
    group = replace(numbered(9), own_splits=False).of("train", 2)
    assert (group.name, group.own_splits) == ("s", False)


def test_the_hash_is_that_of_equal_prompts() -> None:
    assert numbered(5).sha256 == replace(numbered(5), name="another").sha256


def test_the_hash_changes_with_every_field_of_a_prompt() -> None:
    prompt = Prompt("s-1", "q")
    other = {"split": "val", "facts": ("f",)}
    changed = [replace(prompt, **{f.name: other.get(f.name, "x")}) for f in fields(Prompt)]  # type: ignore[arg-type]
    hashes = {PromptSet("s", (p,)).sha256 for p in [prompt, *changed]}
    assert len(hashes) == 1 + len(fields(Prompt))


def test_the_hash_changes_with_the_order() -> None:
    group = numbered(3)
    assert PromptSet("s", group.prompts[::-1]).sha256 != group.sha256


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_the_normal_form_ignores_case_and_outer_space(text: str) -> None:
    assert normalised(f" \t{text}\n") == normalised(text)
    assert normalised("Ａ  b\nİ") == normalised("a B i̇")
