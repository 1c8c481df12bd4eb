"""Prompt files of every kind, well-formed and not."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abliterate.errors import InputError
from abliterate.prompts import PromptSet, load_set
from abliterate.prompts.read import bundled_names, check_named

QUESTIONS = ["What is a fjord?", "为什么天是蓝的？", "Où est la gare 🚉?", "Name a prime number."]
Write = Callable[[str, str | bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write("a.txt", "...")`` gives the new file's path."""

    def make(name: str, data: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return str(path)

    return make


def lines(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parquet(path: Path, **columns: Any) -> str:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def texts(group: PromptSet) -> list[str]:
    return [p.text for p in group]


def refused(source: str) -> str:
    """The one line with which a source is refused."""
    with pytest.raises(InputError) as caught:
        load_set(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_file_kind_gives_the_same_texts_in_file_order(write: Write, tmp_path: Path) -> None:
    files = [
        write("a.txt", "\n".join(QUESTIONS)),
        write("b.jsonl", lines({"text": q} for q in QUESTIONS)),
        write("c.csv", "text\n" + "".join(f'"{q}"\n' for q in QUESTIONS)),
        parquet(tmp_path / "d.parquet", text=QUESTIONS),
    ]
    assert [texts(load_set(file)) for file in files] == [QUESTIONS] * 4


def test_the_kind_is_told_by_the_ending_in_any_case(write: Write) -> None:
    assert texts(load_set(write("A.TXT", "\n".join(QUESTIONS)))) == QUESTIONS


def test_the_set_is_named_after_the_file(write: Write) -> None:
    assert load_set(write("my.questions.txt", "\n".join(QUESTIONS))).name == "my.questions"


def test_a_column_prompt_serves_as_text(write: Write) -> None:
    assert texts(load_set(write("a.jsonl", lines({"prompt": q} for q in QUESTIONS)))) == QUESTIONS


def test_text_wins_over_prompt(write: Write) -> None:
    assert texts(load_set(write("a.jsonl", lines({"prompt": "no", "text": q} for q in QUESTIONS)))) == QUESTIONS


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_bom_and_crlf_are_no_part_of_a_prompt(write: Write, name: str) -> None:
    body = {"a.txt": "\r\n".join(QUESTIONS), "a.csv": "\r\n".join(["text", *QUESTIONS]), "a.jsonl": lines({"text": q} for q in QUESTIONS)}
    data = body[name].replace("}\n", "}\r\n")
    assert texts(load_set(write(name, b"\xef\xbb\xbf" + data.encode()))) == QUESTIONS


def test_blank_lines_are_dropped_and_counted(write: Write) -> None:
    group = load_set(write("a.txt", "\n \na\n\t\n\u3000\nb\n\nc\nd\n\n"))
    assert [(p.id, p.text) for p in group] == [("a-0003", "a"), ("a-0006", "b"), ("a-0008", "c"), ("a-0009", "d")]


def test_repeated_texts_are_dropped_whatever_their_case_width_and_spacing(write: Write) -> None:
    assert texts(load_set(write("a.txt", "Straße eins\nSTRASSE  EINS\nＡＢＣ\nabc\nb\nc\n b \n"))) == ["Straße eins", "ＡＢＣ", "b", "c"]


def test_a_line_separator_within_a_line_does_not_split_it(write: Write) -> None:
    inside = ["one\u2028more", "two\x85more", "three\x0cmore", "four\x0bmore"]
    assert texts(load_set(write("a.txt", "\n".join(inside)))) == inside
    assert texts(load_set(write("a.jsonl", lines({"text": t} for t in inside)))) == inside


def test_a_line_separator_within_a_csv_cell_does_not_split_it(write: Write) -> None:
    inside = ["one\u2028more", "two\x85more", "three\x0cmore", "four\x0bmore"]
    assert texts(load_set(write("a.csv", "text\n" + "\n".join(inside)))) == inside


def test_a_quoted_csv_cell_keeps_its_line_breaks_commas_and_quotes(write: Write) -> None:
    group = load_set(write("a.csv", 'text\n"first,\nsecond ""line"""\nb\nc\nd\n'))
    assert texts(group)[0] == 'first,\nsecond "line"'


def test_a_row_of_empty_cells_is_a_blank_line(write: Write) -> None:
    assert [p.id for p in load_set(write("a.csv", "id,text\n1,a\n,\n\n3,b\n4,c\n5,d\n,\n"))] == ["1", "3", "4", "5"]


@pytest.mark.parametrize("blank", ["", "  ", "\u3000"])
def test_a_blank_text_that_is_no_null_is_dropped(write: Write, tmp_path: Path, blank: str) -> None:
    some = ["a", blank, "b", "c", "d"]
    files = [
        write("a.txt", "\n".join(some)),
        write("b.jsonl", lines({"text": t} for t in some)),
        parquet(tmp_path / "c.parquet", text=some),
    ]
    for file in files:
        assert texts(load_set(file)) == ["a", "b", "c", "d"]
    rows = "".join(f"{i},{text}\n" for i, text in enumerate(some))  # a cell of a table is one or the other
    assert "row 2 (line 3): no text in the column 'text'" in refused(write("a.csv", "id,text\n" + rows))


def test_a_null_is_told_by_its_row_and_column_in_every_format(write: Write, tmp_path: Path) -> None:
    some = ["a", None, "b", "c", None, "d"]
    jsonl = lines({"prompt": t, "n": i} for i, t in enumerate(some))
    assert "a.jsonl:2: no text in the column 'prompt', nor in 1 more row (5); fill it" in refused(write("a.jsonl", jsonl))
    table = "n,prompt\n" + "".join(f"{i},{t or ''}\n" for i, t in enumerate(some))
    assert "a.csv: row 2 (line 3): no text in the column 'prompt', nor in 1 more row (5); fill it" in refused(write("a.csv", table))
    assert "a.parquet: row 2: no text in the column 'prompt', nor in 1 more row (5); fill it" in refused(
        parquet(tmp_path / "a.parquet", n=range(6), prompt=some)
    )


def test_a_row_that_lacks_the_key_of_the_others_is_told_by_its_line(write: Write) -> None:
    message = refused(write("a.jsonl", lines([{"text": "a"}, {"prompt": "b"}, {"question": "c", "n": 1}])))
    assert "a.jsonl:3: no column 'text' (or 'prompt'); it has question, n" in message


def test_of_two_text_columns_the_one_that_is_not_null_is_the_text(tmp_path: Path) -> None:
    source = parquet(tmp_path / "a.parquet", text=["a", None, "c", None], prompt=[None, "b", None, "d"])
    assert texts(load_set(source)) == ["a", "b", "c", "d"]


# --- commas, quotes and columns ---


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("text\na\nRivers, lakes and seas\n", "row 2 (line 3): 2 fields, but the header has 1 (text); put double quotes"),
        (
            "text,category\nRivers, lakes and seas,geography\n",
            "row 1 (line 2): 3 fields, but the header has 2 (text, category); put double",
        ),
        ("text,category\na,b\n\nfirst\nsecond,c\n", "row 2 (line 4): 1 field, but the header has 2"),
        ("text,category\na,b,\n", "row 1 (line 2): 3 fields"),
        ('text\na\n"How is bread made?\nb\n', "row 2 (line 3): a quoted text is not closed (1 field, but the header has 1"),
        ('text,category\n"a,b\n"c",d\n', "row 1 (line 2): a quoted text is not closed (2 fields, but the header has 2"),
        (
            'text,category\n"say "hi, you" now",b\n',
            "row 1 (line 2): a quoted text is not closed (3 fields, but the header has 2",
        ),
        ('"text,category\na,b\n', "the header: a quoted text is not closed (1 field)"),
        ("text;category\nRivers, lakes;geography\n", "its fields are separated by semicolons; save it with commas"),
        ("id\ttext\n1\ta\n", "its fields are separated by tabs; save it with commas"),
        ("text,id,text\na,1,b\n", "two columns are called 'text'"),
    ],
)
def test_a_csv_file_of_another_shape_is_refused_by_its_row(write: Write, data: str, told: str) -> None:
    message = refused(write("a.csv", data))
    assert message.startswith(str(Path(write("a.csv", data)))) and told in message


def test_what_a_csv_file_quotes_comes_out_as_it_was_meant(write: Write) -> None:
    rows = ["text, lang", '"a, b",en', 'the "c" key, "de"', '"d\n\n""e"", f",en', "g;h\ti|j,en"]
    for end in ("\n", "\r\n", "\r"):
        group = load_set(write("a.csv", "\ufeff" + "\n".join(rows).replace("\n", end) + end))
        assert [(p.text, p.lang) for p in group] == [("a, b", "en"), ('the "c" key', "de"), ('d\n\n"e", f', "en"), ("g;h\ti|j", "en")]


@given(st.lists(st.tuples(st.text('ab ,"\n;', min_size=1), st.text('xy,"', min_size=1)), min_size=4, max_size=8))
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    rows = [(f"{i}{text}", category) for i, (text, category) in enumerate(pairs)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "category"), *rows])
    assert [(p.text, p.category) for p in load_set(str(path))] == [(text.strip(), category) for text, category in rows]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (3, "must be a text, not a number"),
        (float("nan"), "must be a text, not a number"),
        (True, "must be a text, not true or false"),
        ({"en": "b"}, "must be a text, not an object"),
        (["b"], "must be a text, not a list"),
        ([{"role": "user", "content": "b"}], "must be a text, not a conversation (a list of messages); give a column"),
        ([{"from": "human", "value": "b"}], "must be a text, not a conversation (a list of messages); give a column"),
    ],
)
def test_what_is_no_text_is_told_by_its_kind(write: Write, tmp_path: Path, value: Any, told: str) -> None:
    assert f"a.jsonl:2: 'text' {told}" in refused(write("a.jsonl", lines([{"text": "a"}, {"text": value}])))
    assert f"a.parquet: row 1: 'text' {told}" in refused(parquet(tmp_path / "a.parquet", text=[value]))


@pytest.mark.parametrize(("key", "value"), [("topic", ["b"]), ("category", {"b": 1}), ("lang", True), ("id", float("nan")), ("pair", [1])])
def test_another_field_that_is_neither_text_nor_number_is_refused(write: Write, key: str, value: Any) -> None:
    assert f"a.jsonl:2: {key!r} must be a text" in refused(write("a.jsonl", lines([{"text": "a"}, {"text": "b", key: value}])))


@pytest.mark.parametrize("row", ['{"text": "b", "topic": "\\ud83d"}', '{"text": "b", "facts": ["\\ud83d"]}'])
def test_half_a_surrogate_in_another_field_is_refused(write: Write, row: str) -> None:
    assert "a.jsonl:1: " in refused(write("a.jsonl", row + "\n"))


@pytest.mark.parametrize("line", ['{"text": "b", "text": "c"}', '{"text": "b"} {"text": "c"}', '{"text": "b"},', '{"text": "b"}]'])
def test_a_second_text_in_a_jsonl_line_is_refused(write: Write, line: str) -> None:
    assert "a.jsonl:2: " in refused(write("a.jsonl", '{"text": "a"}\n' + line + "\n"))


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "two columns are called 'text'" in refused(str(tmp_path / "a.parquet"))


def test_a_long_csv_cell_is_read_or_refused_in_one_line(write: Write) -> None:
    source = write("a.csv", "text\n" + "a" * 200_000 + "\nb\nc\nd\n")
    try:
        assert len(texts(load_set(source))[0]) == 200_000
    except InputError as error:
        assert "a.csv" in str(error)


def test_every_column_reaches_the_prompt(write: Write) -> None:
    row = {
        "id": "q1",
        "text": "Qui a peint Guernica ?",
        "lang": "fr",
        "category": "art",
        "split": "val",
        "pair": "q2",
        "topic": "guernica",
        "facts": ["Picasso", "1937"],
        "official": "None.",
    }
    (prompt,) = load_set(write("a.jsonl", lines([row])))
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in vars(prompt).items()} == row


def test_facts_in_a_cell_are_parted_by_bars(write: Write) -> None:
    group = load_set(write("a.csv", "text,split,facts\nq,test,Picasso | 1937||\n"))
    assert group.prompts[0].facts == ("Picasso", "1937")


def test_facts_of_parquet_lists_are_kept(tmp_path: Path) -> None:
    group = load_set(parquet(tmp_path / "a.parquet", text=["q"], split=["test"], facts=[["Picasso", "1937"]]))
    assert group.prompts[0].facts == ("Picasso", "1937")


def test_language_is_told_from_the_script(write: Write) -> None:
    assert [p.lang for p in load_set(write("a.txt", "\n".join(QUESTIONS)))] == ["en", "zh", "en", "en"]


def test_an_id_of_zero_is_kept(write: Write) -> None:
    assert [p.id for p in load_set(write("a.jsonl", lines({"id": i, "text": f"q {i}"} for i in range(4))))] == ["0", "1", "2", "3"]


def test_a_repeated_row_with_the_same_id_is_no_clash(write: Write) -> None:
    rows = [{"id": f"q{i}", "text": f"q {i}"} for i in range(4)]
    assert len(load_set(write("a.jsonl", lines([*rows, rows[0]])))) == 4


def test_two_prompts_with_one_id_are_refused_by_its_name(write: Write) -> None:
    message = refused(write("a.jsonl", lines({"id": name, "text": f"q {i}"} for i, name in enumerate(["other", "same", "third", "same"]))))
    assert "'same'" in message and "a.jsonl" in message


def test_a_users_id_that_clashes_with_a_dealt_one_is_refused(write: Write) -> None:
    message = refused(write("a.jsonl", lines([{"text": "p"}, {"id": "a-0001", "text": "q"}, {"text": "r"}, {"text": "s"}])))
    assert "'a-0001'" in message


def test_a_missing_column_is_refused_with_the_columns_there_are(write: Write, tmp_path: Path) -> None:
    for source in (
        write("a.jsonl", lines([{"question": "q", "n": 1}])),
        write("a.csv", "question,n\nq,1\n"),
        parquet(tmp_path / "a.parquet", question=["q"], n=[1]),
    ):
        assert "no column 'text' (or 'prompt'); it has question, n" in refused(source)


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "b"',
        "plain text",
        "{'text': 'b'}",
        "NaN,",
        '["text"]',
        '"text"',
        "3",
        "null",
        '{"text": null}',
        '{"text": 3}',
        '{"text": ["b"]}',
        '{"text": "b", "split": "Train"}',
        '{"text": "b", "split": ["train"]}',
        pytest.param('{"text": "b", "facts": 5}', id="facts-number"),
        pytest.param('{"text": "b", "facts": true}', id="facts-true"),
        pytest.param('{"text": "b", "facts": {"x": 1}}', id="facts-object"),
        pytest.param('{"text": "b", "facts": [null]}', id="facts-null"),
        pytest.param('{"text": "b", "id": ' + "1" * 5000 + "}", id="huge-number"),
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_bad_jsonl_line_is_refused_by_its_number(write: Write, line: str) -> None:
    assert "a.jsonl:3: " in refused(write("a.jsonl", '{"text": "a"}\n\n' + line + '\n{"text": "c"}\n{"text": "d"}\n{"text": "e"}\n'))


def test_half_a_surrogate_is_refused_or_replaced(write: Write) -> None:
    source = write("a.jsonl", "".join(f'{{"text": "half a letter \\ud83d {i}"}}\n' for i in range(4)))
    try:
        group = load_set(source)
    except InputError as error:
        assert "a.jsonl:1" in str(error)
    else:
        assert "".join(texts(group)).encode("utf-8")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
@pytest.mark.parametrize("data", [b"text\ncaf\xe9\n", "text\nq\n".encode("utf-16")], ids=["latin-1", "utf-16"])
def test_a_file_that_is_not_utf8_is_refused_by_the_byte(write: Write, name: str, data: bytes) -> None:
    assert re.search(r"not UTF-8 at byte \d+", refused(write(name, data)))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_the_line_that_is_not_utf8_is_named(write: Write, name: str) -> None:
    assert f"{name}:3: not UTF-8 at byte 12; save it as UTF-8" in refused(write(name, b"text\nwhat\nca\xe9\n"))
    assert f"{name}:1: not UTF-8 at byte 0 but UTF-16" in refused(write(name, "text\nq\n".encode("utf-16")))
    assert f"{name}:1: holds a null character: UTF-16" in refused(write(name, "text\nq\n".encode("utf-16-le")))


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    broken = pyarrow.array([b"caf\xe9", b"a", b"b", b"c"]).view(pyarrow.string())
    assert "a.parquet" in refused(parquet(tmp_path / "a.parquet", text=broken))


def test_parquet_bytes_are_no_text(tmp_path: Path) -> None:
    assert "'text' must be a text, not bytes" in refused(parquet(tmp_path / "a.parquet", text=[b"a", b"b"]))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet"])
def test_an_empty_file_is_refused_by_name(write: Write, name: str) -> None:
    assert name in refused(write(name, b""))


@pytest.mark.parametrize(("name", "data"), [("a.txt", "\n \n\n"), ("a.jsonl", "\n\n"), ("a.csv", "text\n"), ("a.txt", "\ufeff")])
def test_a_file_of_blanks_has_no_prompts(write: Write, name: str, data: str) -> None:
    assert "no prompts in it" in refused(write(name, data))


def test_a_parquet_file_of_no_rows_has_no_prompts(tmp_path: Path) -> None:
    assert "no prompts in it" in refused(parquet(tmp_path / "a.parquet", text=pyarrow.array([], pyarrow.string())))


def test_what_is_no_parquet_file_is_refused(write: Write, tmp_path: Path) -> None:
    whole = Path(parquet(tmp_path / "whole.parquet", text=QUESTIONS)).read_bytes()
    assert "not a parquet file" in refused(write("a.parquet", whole[:-20]))
    assert "not a parquet file" in refused(write("b.parquet", "text\nq\n"))


def test_an_unknown_ending_is_refused_with_the_known_ones(write: Write) -> None:
    message = refused(write("a.json", lines([{"text": "q"}])))
    assert all(ending in message for ending in (".txt", ".jsonl", ".csv", ".parquet"))


def test_an_unknown_name_is_refused_with_the_bundled_ones(tmp_path: Path) -> None:
    for source in ("mine", "", "a\0b"):
        message = refused(source)
        assert all(name in message for name in bundled_names())


def test_a_name_that_is_nearly_a_bundled_one_is_answered_with_that() -> None:
    assert refused("censorshp") == "no prompt set 'censorshp': did you mean censorship?"
    assert refused("harmfull") == "no prompt set 'harmfull': did you mean harmful?"


def test_of_what_looks_like_a_file_only_that_is_said(tmp_path: Path) -> None:
    for source in ("../my/missing.txt", "missing.JSONL", str(tmp_path / "none")):
        assert refused(source) == f"{source}: no such file"
    assert refused(str(tmp_path)) == f"{tmp_path}: a folder, not a file of prompts"


def test_a_file_name_that_is_no_unicode_is_refused_in_one_line(write: Write) -> None:
    for name in ("set\udcff.jsonl", "set\udcff.txt"):
        message = refused(write(name, "What is a fjord?\n" * 2))
        assert message.endswith("the file's name holds half a character (a byte that is no UTF-8); rename the file")


def test_names_are_checked_without_reading_a_prompt(write: Write) -> None:
    for source in ("harmful", write("a.jsonl", "no JSON at all"), "hf:data/set:train:text"):
        check_named(source)
    for source in ("harmfull", "none.txt", "hf:data/set", write("a.json", "[]")):
        with pytest.raises(InputError):
            check_named(source)


def test_a_prompt_given_instead_of_a_set_is_refused_in_one_line() -> None:
    assert "no prompt set" in refused("How do I open a jar whose lid is stuck fast? " * 10)


def test_a_bundled_name_wins_over_a_file_without_ending(monkeypatch: pytest.MonkeyPatch, write: Write, tmp_path: Path) -> None:
    write("harmful", "q\n")
    monkeypatch.chdir(tmp_path)
    assert len(load_set("harmful")) > 600
