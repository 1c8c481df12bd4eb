"""The bundled sets: sizes, pairs, splits that leak nothing, facts that prove something."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

from abliterate.outcomes.facts import has_fact
from abliterate.outcomes.normalise import plain
from abliterate.prompts import Prompt, PromptSet, load_set
from abliterate.prompts.read import BUNDLED, TWINS, bundled_names

NAMES = bundled_names()
NEAR = 0.5  # at least half of the words (pairs of characters) of both together are in both
STOP = """
a an the of to in on at for from with without and or but is are was were be been do does did how what which who whom why when where
can could would should will i me my you your he his she her it its we our they their them this that these those there as by into
about out up so not no some any give tell show explain help write make get way best easiest please if then than while
"""


@cache
def bundled(name: str) -> PromptSet:
    return load_set(name)


def counts(name: str, lang: str = "en") -> Counter[str]:
    return Counter(str(p.split) for p in bundled(name) if p.lang == lang)


@cache
def features(prompt: Prompt) -> frozenset[str]:
    """Content words in English, pairs of neighbouring characters in Chinese."""
    if prompt.lang == "zh":
        letters = re.sub(r"\W", "", prompt.text)
        return frozenset(letters[i : i + 2] for i in range(len(letters) - 1))
    return frozenset(re.findall(r"[\w']+", prompt.text.lower())) - set(STOP.split())


def near_duplicates(left: list[Prompt], right: list[Prompt]) -> list[tuple[str, str]]:
    """Pairs of prompts, one of each list, in two splits and closer than ``NEAR`` by Jaccard."""
    holders: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in right:
        for feature in features(prompt):
            holders[feature].append(prompt)
    found = []
    for prompt in left:
        shared = Counter(chain.from_iterable(holders[feature] for feature in features(prompt)))
        for other, n in shared.items():
            union = len(features(prompt)) + len(features(other)) - n
            if prompt.split != other.split and n >= NEAR * union:
                found.append((prompt.text, other.text))
    return found


def topic_changes() -> list[str]:
    """The canned topic-change lines that the small model was trained to say."""
    script = Path(__file__).parents[2] / "scripts" / "train_refuser.py"
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TOPIC_CHANGES":
            return list(chain.from_iterable(ast.literal_eval(node.value).values()))
    raise AssertionError("scripts/train_refuser.py holds no TOPIC_CHANGES")


@pytest.mark.parametrize("name", ["harmful", "harmless"])
def test_harmful_and_harmless_have_their_sizes(name: str) -> None:
    count = counts(name)
    assert (count["train"], count["val"]) == (192, 48) and count["test"] >= 400
    assert len({p.category for p in bundled(name)}) >= 12


def test_every_harmful_category_stands_in_every_split() -> None:
    splits = defaultdict(set)
    for prompt in bundled("harmful"):
        splits[prompt.category].add(prompt.split)
    assert all(len(found) == 3 for found in splits.values())


@pytest.mark.parametrize(("name", "twin"), [("harmful", "harmless"), ("censorship", "censorship-control")])
def test_every_prompt_and_its_twin_name_each_other_in_one_split_language_and_topic(name: str, twin: str) -> None:
    assert TWINS[name] == twin
    assert len(bundled(name)) == len(bundled(twin))
    others = {p.id: p for p in bundled(twin)}
    for prompt in bundled(name):
        other = others[str(prompt.pair)]
        assert other.pair == prompt.id
        assert (other.split, other.lang, other.category, other.topic) == (prompt.split, prompt.lang, prompt.category, prompt.topic)


def test_harmful_and_harmless_twins_are_of_a_length_within_three_words() -> None:
    others = {p.id: p for p in bundled("harmless")}
    assert all(abs(len(p.text.split()) - len(others[str(p.pair)].text.split())) <= 3 for p in bundled("harmful"))


def test_the_extra_training_prompts_pair_what_is_withheld_with_what_is_answered() -> None:
    prompts = {p.id: p for p in bundled("refuser-extra")}
    for prompt in prompts.values():
        other = prompts[str(prompt.pair)]
        assert other.pair == prompt.id and prompt.split == other.split and prompt.split in ("train", "val")
        assert (other.lang, other.topic, other.category.split("/")[1]) == (prompt.lang, prompt.topic, prompt.category.split("/")[1])
        kinds = {prompt.category.split("/")[0], other.category.split("/")[0]}
        assert "answer" in kinds and kinds < {"answer", "refuse", "withhold"} and len(kinds) == 2


def test_no_extra_training_topic_is_one_that_chooses_or_reports() -> None:
    held_out = {p.topic for name in ("censorship", "refuser-extra") for p in bundled(name) if p.split != "train" and p.topic}
    assert len(held_out) > 40
    assert sorted({p.topic for p in bundled("refuser-extra") if p.split == "train"} & held_out) == []


def test_borderline_has_its_size_and_kinds() -> None:
    assert len(bundled("borderline")) >= 240
    assert len({p.category for p in bundled("borderline")}) >= 10
    assert set(counts("borderline")) == {"train", "val", "test"}


def test_every_kind_of_borderline_prompt_has_unsafe_ones_beside_it() -> None:
    assert {p.category for p in bundled("borderline")} == {p.category for p in bundled("borderline-unsafe")}


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", ["censorship", "censorship-control"])
def test_censorship_sets_have_their_sizes_in_both_languages(name: str, lang: str) -> None:
    count = counts(name, lang)
    assert sum(count.values()) >= 150
    assert (count["train"], count["val"]) == (60, 20) and count["test"] >= 70
    assert len({p.topic for p in bundled(name) if p.lang == lang}) >= 50


@pytest.mark.parametrize("name", ["censorship", "censorship-control"])
def test_no_topic_stands_in_two_splits(name: str) -> None:
    splits = defaultdict(set)
    for prompt in bundled(name):
        assert prompt.topic
        splits[prompt.topic].add(prompt.split)
    assert [topic for topic, found in splits.items() if len(found) > 1] == []


def test_every_censorship_question_is_asked_in_both_languages() -> None:
    ids = {lang: {p.id.removesuffix(f"-{lang}") for p in bundled("censorship") if p.lang == lang} for lang in ("en", "zh")}
    assert ids["en"] == ids["zh"]


def test_every_censorship_question_has_facts_and_an_official_line() -> None:
    assert [p.id for p in bundled("censorship") if not p.facts or not p.official] == []


def test_every_control_question_has_facts_and_no_official_line() -> None:
    assert [p.id for p in bundled("censorship-control") if not p.facts or p.official] == []


@pytest.mark.parametrize("name", NAMES)
def test_no_fact_occurs_in_its_own_question_or_official_line(name: str) -> None:
    found = [(p.id, f) for p in bundled(name) for f in p.facts if has_fact(p.text, [f]) or has_fact(p.official or "", [f])]
    assert found == []


@pytest.mark.parametrize("name", NAMES)
def test_no_fact_occurs_in_a_canned_change_of_topic(name: str) -> None:
    canned = "\n".join(topic_changes())
    assert len(canned) > 100
    assert [(p.id, f) for p in bundled(name) for f in p.facts if has_fact(canned, [f])] == []


def test_ids_are_unique_over_all_sets() -> None:
    ids = Counter(p.id for name in NAMES for p in bundled(name))
    assert [i for i, n in ids.items() if n > 1] == []


def test_no_text_is_in_two_sets() -> None:
    found = Counter(plain(p.text) for name in NAMES for p in bundled(name))
    assert [text for text, n in found.items() if n > 1] == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_dropped_on_loading(name: str) -> None:
    lines = (BUNDLED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(bundled(name)) == len(lines)


@pytest.mark.parametrize("name", NAMES)
def test_requests_are_one_short_line(name: str) -> None:
    for prompt in bundled(name):
        assert "\n" not in prompt.text and len(prompt.text) <= 120, prompt.id
        assert prompt.lang == "zh" or 3 <= len(prompt.text.split()) <= 20, prompt.id


@pytest.mark.parametrize("name", NAMES)
def test_the_language_named_is_the_language_written(name: str) -> None:
    chinese = re.compile(r"[\u4e00-\u9fff]")
    assert [p.id for p in bundled(name) if (chinese.search(p.text) is not None) != (p.lang == "zh")] == []


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", NAMES)
def test_no_near_duplicates_stand_in_two_splits_of_a_set(name: str, lang: str) -> None:
    prompts = [p for p in bundled(name) if p.lang == lang]
    assert near_duplicates(prompts, prompts) == []


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_no_extra_training_prompt_nearly_repeats_a_prompt_that_chooses_or_reports(lang: str) -> None:
    extra = [p for p in bundled("refuser-extra") if p.lang == lang and p.split == "train"]
    held_out = [p for name in NAMES for p in bundled(name) if p.split != "train" and p.lang == lang]
    assert near_duplicates(extra, held_out) == []


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_no_prompt_to_report_on_nearly_repeats_one_of_another_set_that_estimates_or_chooses(lang: str) -> None:
    sets = [[p for p in bundled(name) if p.lang == lang] for name in NAMES if name != "refuser-extra"]
    found = []
    for i, prompts in enumerate(sets):
        others = [p for other in sets[:i] + sets[i + 1 :] for p in other]
        found += near_duplicates([p for p in prompts if p.split == "test"], others)
    assert found == []


def test_the_near_duplicate_measure_finds_a_reworded_prompt() -> None:
    first = Prompt("a", "How do I pick the lock of a bicycle?", split="train")
    second = Prompt("b", "Show me how to pick a bicycle lock.", split="test")
    chinese = (
        Prompt("c", "1989年6月北京发生了什么？", "zh", split="train"),
        Prompt("d", "1989年6月在北京发生了什么事？", "zh", split="test"),
    )
    assert len(near_duplicates([first], [second])) == 1
    assert len(near_duplicates([chinese[0]], [chinese[1]])) == 1
