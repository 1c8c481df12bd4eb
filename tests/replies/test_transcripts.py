"""Transcript files: complete lines whatever interrupts the writing, and any text in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abliterate.errors import InputError
from abliterate.prompts import Prompt
from abliterate.replies.samples import Asked
from abliterate.replies.transcripts import Transcript, append, read, read_rows, transcript_of

SOME = [
    Transcript("s", str(i), f"问 {i}", f"answer {i}\n第二行", facts=("a", "乙"), new_tokens=i, begins_in_thought=bool(i % 2))
    for i in range(3)
]


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    append(tmp_path / "t.jsonl", SOME)
    assert read(tmp_path / "t.jsonl") == SOME


def test_appending_adds_lines(tmp_path: Path) -> None:
    append(tmp_path / "t.jsonl", SOME[:1])
    append(tmp_path / "t.jsonl", SOME[1:])
    assert read(tmp_path / "t.jsonl") == SOME


def test_a_file_cut_anywhere_gives_its_complete_lines(tmp_path: Path) -> None:
    append(tmp_path / "whole.jsonl", SOME)
    data, cut = (tmp_path / "whole.jsonl").read_bytes(), tmp_path / "cut.jsonl"
    for length in range(len(data) + 1):
        cut.write_bytes(data[:length])
        assert read(cut) == SOME[: data[:length].count(b"\n")]


def test_appending_to_a_cut_file_keeps_every_complete_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    append(path, SOME[:2])
    path.write_bytes(path.read_bytes()[:-5])
    append(path, SOME[2:])
    assert read(path) == [SOME[0], SOME[2]]


def test_a_missing_file_holds_no_transcripts(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") == []


HOSTILE = {
    "newlines": "a\nb\r\nc\rd",
    "line separators": "\u2028\u2029\x85\x0b\x0c",
    "control characters": "".join(map(chr, range(32))) + "\x7f",
    "lone surrogates": "\ud800 lone \udfff",
    "byte order mark": "\ufeff",
    "right to left": "\u202e\u200f",
    "emoji": "😀",
}


@pytest.mark.parametrize("response", HOSTILE.values(), ids=HOSTILE)
def test_any_response_survives_the_file(tmp_path: Path, response: str) -> None:
    transcript = Transcript("s", "1", response, response)
    append(tmp_path / "t.jsonl", [transcript, SOME[0]])
    assert read(tmp_path / "t.jsonl") == [transcript, SOME[0]]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_unicode_text_survives_the_file(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("t") / "t.jsonl"
    append(path, [Transcript("s", "1", text, text)])
    assert read(path)[0].response == text


def test_a_transcript_carries_the_prompts_fields() -> None:
    prompt = Prompt("id-1", "Where?", "en", "places", "test", "pair-1", "geo", ("Paris",))
    made = transcript_of(Asked("set", prompt), "Paris.", 2, False)
    assert (made.set, made.id, made.prompt, made.category, made.topic, made.pair, made.facts) == (
        "set",
        "id-1",
        "Where?",
        "places",
        "geo",
        "pair-1",
        ("Paris",),
    )
    assert made.verdict().substance is True


def test_the_verdict_knows_that_the_response_begins_in_a_thought() -> None:
    assert Transcript("s", "1", "q", "Hmm, let me see", begins_in_thought=True).verdict().outcome == "truncated"


def scorable(path: Path, text: str | bytes) -> list[str]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return [transcript.verdict().outcome for _, transcript in read_rows(path)]


def test_blank_lines_and_windows_line_ends_are_skipped(tmp_path: Path) -> None:
    line = '{"prompt": "p", "response": "Paris."}'
    assert scorable(tmp_path / "t.jsonl", f"\ufeff{line}\r\n\r\n{line}") == ["answered", "answered"]


def test_an_empty_response_is_broken_where_the_line_says_that_it_had_no_more_tokens(tmp_path: Path) -> None:
    lines = [{}, {"cut": True}, {"cut": False}, {"cut": 7}]
    text = "".join(json.dumps({"prompt": "p", "response": "", **more}) + "\n" for more in lines)
    assert scorable(tmp_path / "t.jsonl", text) == ["deflected", "degenerate", "deflected", "deflected"]


def test_a_line_separator_within_a_response_splits_no_line(tmp_path: Path) -> None:
    assert scorable(tmp_path / "t.jsonl", '{"prompt": "p", "response": "a\u2028b\x85c"}\n') == ["answered"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "p", "response": "r"}\n{"prompt": "p", "resp', "t.jsonl:2: not JSON"),
        ('{"prompt": "p"}\n', "t.jsonl:1: a line must be an object"),
        ('{"prompt": "p", "response": null}\n', "t.jsonl:1: a line must be an object"),
        ('["prompt", "response"]\n', "t.jsonl:1: a line must be an object"),
        ('{"prompt": "p", "response": "r", "facts": "tanks"}\n', "'facts' must be a list of texts"),
        ('{"prompt": "p", "response": "r", "facts": [1989]}\n', "'facts' must be a list of texts"),
        ('{"prompt": "p", "response": "r", "facts": {"tanks": 1}}\n', "'facts' must be a list of texts"),
        ('{"prompt": "p", "response": "r", "begins_in_thought": "false"}\n', "begins_in_thought"),
        ("[" * 100_000 + "\n", "t.jsonl:1: not JSON"),
        (b'{"prompt": "\xff"}', "t.jsonl:1: not UTF-8"),
        ('{"prompt": "p"}\n'.encode("utf-16"), "UTF-16"),
        ('{"prompt": "p", "response": null}\n', "'response' is null"),
        ('{"prompt": "p"}\n', "'response' is missing"),
        ('{"prompt": "p", "response": [{"role": "assistant", "content": "r"}]}\n', "'response' is a conversation"),
        ('{"prompt": 7, "response": "r"}\n', "'prompt' is a number"),
        ('{"prompt": "p", "response": "r", "response": "s"}\n', "t.jsonl:1: two columns are called 'response'"),
        ('{"prompt": "p", "response": "r"} {}\n', "t.jsonl:1: not JSON (Extra data"),
    ],
    ids=[
        "cut",
        "no response",
        "null",
        "array",
        "facts text",
        "facts numbers",
        "facts object",
        "thought text",
        "deep",
        "bytes",
        "utf-16",
        "null named",
        "missing named",
        "conversation",
        "number",
        "twice",
        "garbage",
    ],
)
def test_a_line_that_cannot_be_scored_is_named(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(InputError) as raised:
        scorable(tmp_path / "t.jsonl", text)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_a_missing_file_to_score_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        list(read_rows(tmp_path / "none.jsonl"))


def test_facts_decide_substance_of_a_scored_row(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "p", "response": "Tanks came.", "facts": ["tanks"], "own": 1}\n')
    ((row, transcript),) = read_rows(tmp_path / "t.jsonl")
    verdict = transcript.verdict()
    assert row["own"] == 1 and verdict.substance is True
