"""``abliterate score``: the same lines plus their outcomes, or one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from serving import StandIn, completion, running

from abliterate.cli.main import main
from abliterate.replies.transcripts import read_rows

LINES = (
    '{"prompt": "p", "response": "I can\'t help with that.", "id": "x", "own": [1]}\n'
    '{"prompt": "问", "response": "<think>\\n\\n</think>\\n\\n坦克开进了城。", "facts": ["坦克"], "lang": "zh"}\n'
)


def scored(tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    (tmp_path / "in.jsonl").write_text(text, encoding="utf-8")
    code = main(["score", str(tmp_path / "in.jsonl")])
    out, err = capfd.readouterr()
    return code, out, err


def test_every_line_keeps_its_keys_and_gains_its_outcome(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = scored(tmp_path, LINES, capfd)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    for row, given in zip(rows, LINES.splitlines(), strict=True):
        assert json.loads(given).items() <= row.items()
        assert {"outcome", "thought", "substance", "rule"} <= set(row)
    assert [(r["outcome"], r["thought"], r["substance"]) for r in rows] == [("refused", None, None), ("answered", "empty", True)]


def test_a_language_without_rules_is_not_judged_and_the_way_out_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = json.dumps({"prompt": "p", "response": "Извините, но я не могу помочь с этим запросом.", "facts": ["нет"]})
    code, out, err = scored(tmp_path, LINES + line + "\n", capfd)
    row = json.loads(out.splitlines()[2])
    assert code == 0 and (row["outcome"], row["substance"], row["thought"]) == ("not_judged", None, None) and "Russian" in row["rule"]
    assert "1 of 3 replies are in a language that the rules don't know" in err and "--judge chat:URL" in err


def test_scoring_scored_lines_changes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, once, _ = scored(tmp_path, LINES, capfd)
    _, twice, _ = scored(tmp_path, once, capfd)
    assert once == twice


def test_out_holds_what_stdout_would(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = scored(tmp_path, LINES, capfd)
    assert main(["score", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 0
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == out


def test_an_empty_file_gives_no_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert scored(tmp_path, "", capfd) == (0, "", "")


def test_a_lone_surrogate_comes_out_as_it_went_in(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = scored(tmp_path, '{"prompt": "p", "response": "a \\ud83d b"}\n', capfd)
    assert code == 0 and json.loads(out)["response"] == "a \ud83d b"


def test_every_line_of_output_is_one_json_object(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = scored(tmp_path, '{"prompt": "p", "response": "a\\nb\\u2028c\\u0085d\\r"}\n' * 2, capfd)
    assert [json.loads(line)["response"] for line in out.split("\n")[:-1]] == ["a\nb\u2028c\x85d\r"] * 2


def test_a_bad_line_is_named_and_nothing_is_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text(LINES + "{oops\n", encoding="utf-8")
    assert main(["score", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]) == 2
    out, err = capfd.readouterr()
    assert out == "" and "in.jsonl:3: not JSON" in err and err.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_the_input_is_never_overwritten(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text(LINES, encoding="utf-8")
    assert main(["score", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "in.jsonl")]) == 2
    assert "is the input itself" in capfd.readouterr().err
    assert (tmp_path / "in.jsonl").read_text(encoding="utf-8") == LINES


@pytest.mark.parametrize(
    ("file", "out"),
    [("none.jsonl", None), ("none.jsonl", "there.jsonl"), ("there.jsonl", "folder"), ("folder", None)],
    ids=["no input", "no input, output there", "output is a folder", "input is a folder"],
)
def test_paths_that_are_not_there_end_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str], file: str, out: str | None) -> None:
    (tmp_path / "there.jsonl").write_text(LINES, encoding="utf-8")
    (tmp_path / "folder").mkdir()
    code = main(["score", str(tmp_path / file), *(["--out", str(tmp_path / out)] if out else [])])
    err = capfd.readouterr().err
    assert code == 2 and err.count("\n") == 1 and err.startswith("abliterate: ")
    assert not list(tmp_path.glob(".*partial"))


# --- under another judge ---


def judged(
    tmp_path: Path, server: StandIn, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[dict[str, Any]], str]:
    monkeypatch.setenv("ABLITERATE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in.jsonl").write_text(LINES + '{"prompt": "p", "response": "<think>\\nhm"}\n', encoding="utf-8")
    assert main(["score", str(tmp_path / "in.jsonl"), "--judge", f"chat:{server.url}#tiny"]) == 0
    out, err = capfd.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def test_another_judge_gives_the_outcomes(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with running(StandIn()) as server:
        server.answers = lambda message: completion('{"outcome": "state_line"}')
        rows, err = judged(tmp_path, server, capfd, monkeypatch)
    assert [row["outcome"] for row in rows] == ["state_line", "state_line", "truncated"]
    assert [(row["thought"], row["substance"]) for row in rows[:2]] == [(None, None), ("empty", False)]
    assert rows[0]["rule"] == "chat: tiny" and rows[0]["own"] == [1] and "gave no outcome" not in err


def test_what_it_gives_no_outcome_for_is_unjudged_and_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(StandIn()) as server:
        server.answers = lambda message: completion("answered" if "坦克" in message else "who knows")
        rows, err = judged(tmp_path, server, capfd, monkeypatch)
    assert [row["outcome"] for row in rows] == ["unjudged", "answered", "truncated"]
    assert rows[0]["substance"] is None and "gave no outcome for 1 of 3 replies" in err


def test_a_judge_that_there_is_not_ends_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text(LINES, encoding="utf-8")
    for given in ("oracle", "chat:nowhere", f"classifier:{tmp_path}@A=refused", f"classifier:{tmp_path / 'none'}"):
        assert main(["score", str(tmp_path / "in.jsonl"), "--judge", given]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err.startswith("abliterate: ") and err.splitlines()[-1:] == err.splitlines()


def test_an_official_line_is_read_and_must_be_a_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    row, file = {"prompt": "p", "response": "Olsen.", "facts": ["Olsen"], "official": "All is well."}, tmp_path / "official.jsonl"
    file.write_text(json.dumps(row) + "\n" + json.dumps({**row, "official": None}) + "\n", encoding="utf-8")
    assert [transcript.official for _, transcript in read_rows(file)] == ["All is well.", None]
    code, _, err = scored(tmp_path, json.dumps({**row, "official": 7}) + "\n", capfd)
    assert code == 2 and "'official' must be a text" in err
