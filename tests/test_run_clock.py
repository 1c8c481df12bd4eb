"""The time that prompts show is fixed once a run, recorded, and used again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import CHATML, byte_tokenizer
from serving import StandIn, running

from abliterate.api import generate
from abliterate.cli import main
from abliterate.commands import audit
from abliterate.comparison import compare
from abliterate.config import AuditConfig, CompareConfig, ModelConfig, RunConfig
from abliterate.model.passes import Model
from abliterate.model.session import Session
from abliterate.pipeline import run

Tiny = Callable[..., Path]
CLOCK = byte_tokenizer("<|im_start|>system\nToday is {{ strftime_now('%d %B %Y %H:%M:%S') }}<|im_end|>\n" + CHATML)
THEN, LATER = datetime(2001, 2, 3, 4, 5, 6), datetime(2031, 12, 24, 23, 59, 58)
WORDS = ["stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror", "harbour", "lantern", "meadow"]
Said = dict[tuple[str, str], str]


@pytest.fixture
def asked(tmp_path: Path) -> str:
    (tmp_path / "asked.txt").write_text("".join(f"Tell me about the {word}.\n" for word in WORDS))
    return str(tmp_path / "asked.txt")


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


def replies(out: Path, which: str = "base") -> Said:
    lines = (out / "transcripts" / f"{which}.jsonl").read_text().splitlines()
    return {(row["set"], row["id"]): row["response"] for row in map(json.loads, lines)}


def unfinished(out: Path) -> None:
    """As a kill leaves a run folder that had only begun."""
    (out / "report.json").unlink()
    shutil.rmtree(out / "transcripts")


def audited(model: Path, asked: str, out: Path, clock: datetime | None = None) -> Said:
    audit(AuditConfig(model=str(model), prompts=(asked,), max_new_tokens=8), out, clock)
    return replies(out)


def test_a_resumed_run_shows_the_time_of_its_beginning(tiny: Tiny, asked: str, tmp_path: Path) -> None:
    model = tiny(tokenizer=CLOCK)
    first = audited(model, asked, tmp_path / "out", THEN)
    assert record(tmp_path / "out")["resolved"]["clock"] == "2001-02-03T04:05:06"
    unfinished(tmp_path / "out")
    assert audited(model, asked, tmp_path / "out") == first
    unfinished(tmp_path / "out")
    assert audited(model, asked, tmp_path / "out", LATER) == first
    assert record(tmp_path / "out")["resolved"]["clock"] == "2001-02-03T04:05:06"
    assert audited(model, asked, tmp_path / "other", LATER) != first  # the time matters to this model


def test_a_run_begins_now_and_says_when(tiny: Tiny, asked: str, tmp_path: Path) -> None:
    before = datetime.now().replace(microsecond=0)
    audited(tiny(tokenizer=CLOCK), asked, tmp_path / "out")
    assert before <= datetime.fromisoformat(record(tmp_path / "out")["resolved"]["clock"]) <= datetime.now()


def test_where_no_template_reads_it_no_time_is_recorded(tiny: Tiny, asked: str, tmp_path: Path) -> None:
    audited(tiny(), asked, tmp_path / "out", THEN)
    assert record(tmp_path / "out")["resolved"]["clock"] is None


def test_a_run_recorded_without_a_time_goes_on_and_records_one(tiny: Tiny, asked: str, tmp_path: Path) -> None:
    model, out = tiny(tokenizer=CLOCK), tmp_path / "out"
    audited(model, asked, out)
    old = record(out)
    del old["resolved"]["clock"]
    (out / "run.json").write_text(json.dumps(old))
    unfinished(out)
    first = audited(model, asked, out, LATER)
    assert record(out)["resolved"]["clock"] == "2031-12-24T23:59:58"
    unfinished(out)
    assert audited(model, asked, out) == first


@pytest.mark.parametrize("clocks", [("base",), ("derived",), ("base", "derived")])
def test_both_models_of_a_comparison_are_shown_the_same_time(tiny: Tiny, asked: str, tmp_path: Path, clocks: tuple[str, ...]) -> None:
    models = {which: tiny(tokenizer=CLOCK if which in clocks else None) for which in ("base", "derived")}
    config = CompareConfig(base=str(models["base"]), derived=str(models["derived"]), prompts=(asked,), max_new_tokens=8, limit=4)
    out = tmp_path / "out"
    compare(config, out, THEN)
    for which, resolved in (("base", record(out)["resolved"]), ("derived", record(out)["derived"]["resolved"])):
        assert resolved["clock"] == ("2001-02-03T04:05:06" if which in clocks else None)
    assert (replies(out) == replies(out, "edited")) == (len(clocks) == 2)
    first = replies(out), replies(out, "edited")
    unfinished(out)
    compare(config, out)
    assert (replies(out), replies(out, "edited")) == first


def test_the_edited_model_and_the_reference_are_shown_the_same_time(tiny: Tiny, tmp_path: Path) -> None:
    sets = {role: str(tmp_path / f"{role}.txt") for role in ("target", "baseline", "harmless")}
    for role, verb in zip(sets, ("Burn", "Draw", "Name"), strict=True):
        Path(sets[role]).write_text("".join(f"{verb} the {word}.\n" for word in WORDS))
    model, out = tiny(tokenizer=CLOCK), tmp_path / "out"
    roles = {role: (path,) for role, path in sets.items()}
    config = {"model": str(model), **roles, "keep": (), "max_new_tokens": 8, "candidates": 2, "tune": "off", "reference": str(model)}
    run(RunConfig.model_validate(config), out, THEN)
    for which, folder in (("edited", out / "checkpoint"), ("reference", model)):
        rows = [json.loads(line) for line in (out / "transcripts" / f"{which}.jsonl").read_text().splitlines()]
        then, later = (Session(ModelConfig(model=str(folder)), folder, clock=at).model for at in (THEN, LATER))
        assert _beginnings(then, rows) == [row["response"][:6] for row in rows] != _beginnings(later, rows)


def _beginnings(model: Model, rows: list[dict[str, Any]]) -> list[str]:
    """The first letters of what a model says now to the prompts of transcripts."""
    return [transcript.response[:6] for transcript in generate(model, [row["prompt"] for row in rows], 8)]


def test_a_run_is_reproduced_at_its_own_time(tiny: Tiny, asked: str, tmp_path: Path) -> None:
    model = tiny(tokenizer=CLOCK)
    first = audited(model, asked, tmp_path / "out", THEN)
    assert main(["reproduce", str(tmp_path / "out"), "--out", str(tmp_path / "again")]) == 0
    assert replies(tmp_path / "again") == first
    found = json.loads((tmp_path / "again" / "reproduction.json").read_text())
    assert found["totals"]["different"] == 0 and found["differences"]["resolved"] == {}


@pytest.mark.parametrize("command", ["audit", "reproduce"])
def test_a_recorded_time_that_is_none_is_one_line(
    tiny: Tiny, asked: str, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tiny(tokenizer=CLOCK), tmp_path / "out"
    audited(model, asked, out)
    old = record(out)
    old["resolved"]["clock"] = "half past four"
    (out / "run.json").write_text(json.dumps(old))
    capsys.readouterr()
    again = ["reproduce", str(out), "--out", str(tmp_path / "again")]
    same = ["audit", "--model", str(model), "--prompts", asked, "--max-new-tokens", "8", "--out", str(out)]
    assert main(same if command == "audit" else again) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "its clock ('half past four') is not a time" in line
    assert not (tmp_path / "again").exists()


def test_of_a_server_it_is_said_that_it_shows_its_own_time(
    tiny: Tiny, asked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(StandIn()) as server:
        call = ["audit", "--model", str(tiny(tokenizer=CLOCK)), "--engine", server.url, "--prompts", asked, "--out", str(tmp_path / "out")]
        assert main(call) == 0
    assert "a server shows its own" in capsys.readouterr().err
    assert record(tmp_path / "out")["resolved"]["clock"] is None
