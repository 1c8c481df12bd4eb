"""``hf:`` sources, read by the datasets library from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from abliterate.errors import InputError
from abliterate.prompts import load_set

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
