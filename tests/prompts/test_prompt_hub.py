"""``hf:`` sources, read by the datasets library from a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest

from abliterate.errors import InputError
from abliterate.prompts import RoleSets, load_set
from abliterate.prompts.read import check_named

QUESTIONS = ["What is a fjord?", "为什么天是蓝的？", "  Name a prime number. ", "Where is Faro?", "Where is Faro?", " "]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set with a train and a test split, and a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    data = tmp_path / "questions"
    data.mkdir()
    rows = [json.dumps({"question": q, "score": i}, ensure_ascii=False) for i, q in enumerate(QUESTIONS)]
    (data / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (data / "test.jsonl").write_text("\n".join(rows[:1]), encoding="utf-8")
    return data


def refused(source: str) -> str:
    with pytest.raises(InputError) as caught:
        load_set(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("config", ["", "default:"])
def test_the_named_column_of_the_named_split_is_the_text(folder: Path, config: str) -> None:
    group = load_set(f"hf:{folder}:{config}train:question")
    assert [p.text for p in group] == ["What is a fjord?", "为什么天是蓝的？", "Name a prime number.", "Where is Faro?"]
    assert group.name == "questions"
    assert [p.id for p in group] == ["questions-0001", "questions-0002", "questions-0003", "questions-0004"]
    assert {p.split for p in group} == {"train", "val", "test"}


def test_the_splits_of_a_data_set_are_dealt_out_here(folder: Path) -> None:
    assert not load_set(f"hf:{folder}:train:question").own_splits


def test_a_missing_column_is_refused_with_those_there_are(folder: Path) -> None:
    assert "no column 'text'; it has question, score" in refused(f"hf:{folder}:train:text")


def test_a_column_of_numbers_is_refused_by_its_row(folder: Path) -> None:
    assert "row 1: " in refused(f"hf:{folder}:train:score")


def test_a_missing_split_is_refused_by_its_name(folder: Path) -> None:
    assert "validation" in refused(f"hf:{folder}:validation:question")


def test_a_missing_data_set_is_refused_by_its_name(folder: Path) -> None:
    assert str(folder / "none") in refused(f"hf:{folder / 'none'}:train:question")


@pytest.mark.parametrize("source", ["hf:", "hf:a", "hf:a:train", "hf:a::text", "hf:a:b:c:d:e", "hf::train:text"])
def test_a_source_of_the_wrong_form_is_told_the_right_one(source: str) -> None:
    assert "hf:DATASET:SPLIT:COLUMN" in refused(source)


# --- slices ---


@pytest.fixture
def twenty(folder: Path) -> Path:
    """A data set whose train split has twenty rows."""
    rows = [json.dumps({"question": f"Question {i} about rivers: which?"}) for i in range(20)]
    (folder / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "test.jsonl").unlink()
    return folder


@pytest.mark.parametrize("config", ["", "default:"])
@pytest.mark.parametrize(
    ("slice_", "rows"),
    [
        ("[:10]", range(10)),
        ("[10:20]", range(10, 20)),
        ("[-5:]", range(15, 20)),
        ("[:]", range(20)),
        ("[:1000]", range(20)),
        ("[:30%]", range(6)),
        ("[50%:]", range(10, 20)),
        ("[:4]+train[16:]", [*range(4), *range(16, 20)]),
    ],
)
def test_a_slice_gives_its_rows(twenty: Path, config: str, slice_: str, rows: Sequence[int]) -> None:
    group = load_set(f"hf:{twenty}:{config}train{slice_}:question")
    assert [p.text for p in group] == [f"Question {i} about rivers: which?" for i in rows]


def test_two_slices_of_one_data_set_are_two_sets(twenty: Path) -> None:
    sets = RoleSets([f"hf:{twenty}:train[:10]:question"], [f"hf:{twenty}:train[10:]:question"])
    assert [group.name for group in sets.all] == ["questions[:10]", "questions[10:]"]


@pytest.mark.parametrize(
    "split",
    ["train[:10", "train:10]", "train[10]", "train[a:b]", "train[1:2:3]", "train[:10%", "train[:1.5%]", "train[2:50%]", "train[:]x"],
)
def test_a_slice_of_another_form_is_told_the_right_one_before_anything_is_read(split: str) -> None:
    with pytest.raises(InputError, match=r"write a slice as SPLIT\[FROM:TO\]"):
        check_named(f"hf:no/such:{split}:question")


def test_a_slice_without_rows_is_named(twenty: Path) -> None:
    assert 'can\'t load the slice (Instruction "train[5:5]" corresponds to no data' in refused(f"hf:{twenty}:train[5:5]:question")


# --- rows ---


def asked(folder: Path, rows: Sequence[str], column: str) -> str:
    """The one line with which a column of these rows is refused."""
    (folder / "test.jsonl").unlink()
    (folder / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return refused(f"hf:{folder}:train:{column}")


def test_a_null_is_told_by_its_row_and_the_column_that_was_named(folder: Path) -> None:
    rows = [{"question": q} for q in ("a", None, "b", "c", None)] + [{"n": 1}]
    assert "row 2: no text in the column 'question', nor in 2 more rows (5, 6)" in asked(folder, [*map(json.dumps, rows)], "question")


def test_a_conversation_in_the_column_is_told_as_one(folder: Path) -> None:
    rows = [json.dumps({"chat": [{"role": "user", "content": "a"}]})]
    assert "row 1: 'chat' must be a text, not a conversation (a list of messages)" in asked(folder, rows, "chat")


def test_why_a_data_set_can_not_be_made_is_told(folder: Path) -> None:
    message = asked(folder, ['{"question": "a"}', '{"question": "b"} garbage'], "question")
    assert "JSON" in message and "An error occurred" not in message
