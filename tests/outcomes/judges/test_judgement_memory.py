"""What judges said is kept by content: what is there is there whatever happens, and only for the same question."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from abliterate.errors import InputError
from abliterate.outcomes.judges.judge import Case
from abliterate.outcomes.judges.memory import Memory, key_of


def test_what_was_kept_is_known_to_the_next_process(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "j.sqlite"
    Memory(file).keep("a", "m", "1", "refused")
    assert Memory(file).known(["a", "b"]) == {"a": "refused"}


def test_a_reply_is_on_disk_at_once(tmp_path: Path) -> None:
    Memory(tmp_path / "j.sqlite").keep("a", "m", "1", "refused \ud83d")
    rows = sqlite3.connect(tmp_path / "j.sqlite").execute("SELECT key, model, rubric, reply FROM replies").fetchall()
    assert rows == [("a", "m", "1", "refused ?")]


def test_each_part_of_a_question_changes_its_key() -> None:
    keys = [key_of(model, rubric, Case("p", "r")) for model, rubric in (("m", "1"), ("n", "1"), ("m", "2"))]
    cases = [Case("q", "r"), Case("p", "s"), Case("pr", ""), Case('p", "r', ""), Case("p", "\ud83d")]
    keys += [key_of("m", "1", case) for case in [*cases, Case("p", "r", ("a",)), Case("p", "r", ("a",), "b")]]
    assert len(set(keys)) == len(keys)


def test_a_file_that_is_no_memory_is_named_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "j.sqlite"
    file.write_text("not a database at all, but long enough to be taken for the header of one\n" * 20)
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"j\.sqlite: .*ABLITERATE_CACHE"):
        Memory(file).known(["a"])
    assert file.read_bytes() == before
