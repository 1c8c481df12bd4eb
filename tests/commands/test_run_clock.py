"""The time that prompts show is fixed once a run, recorded, and used again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import CHATML, byte_tokenizer, save_tiny
from serving import StandIn, running

from abliterate.api import generate
from abliterate.cli.main import main
from abliterate.commands.audit import audit
from abliterate.commands.compare import compare
from abliterate.commands.run import run
from abliterate.compute.passes import Model
from abliterate.compute.session import Session
from abliterate.config import AuditConfig, CompareConfig, ModelConfig, RunConfig
from abliterate.outcomes.records import OUTCOMES
from abliterate.runs.record import resolved

Tiny = Callable[..., Path]
CLOCK = byte_tokenizer("<|im_start|>system\nToday is {{ strftime_now('%d %B %Y %H:%M:%S') }}<|im_end|>\n" + CHATML)
THEN, LATER = datetime(2001, 2, 3, 4, 5, 6), datetime(2031, 12, 24, 23, 59, 58)
WORDS = ["stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror", "harbour", "lantern", "meadow"]


def asked(folder: Path, verb: str = "Draw", count: int = 4) -> str:
    (folder / f"{verb}.txt").write_text("".join(f"{verb} the {word}.\n" for word in WORDS[:count]))
    return str(folder / f"{verb}.txt")


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


def replies(out: Path, which: str = "base") -> dict[str, str]:
    """The replies of a run by their prompts."""
    lines = (out / "transcripts" / f"{which}.jsonl").read_text().splitlines()
    return {row["prompt"]: row["response"] for row in map(json.loads, lines)}


def said(model: Model, prompts: dict[str, str]) -> dict[str, str]:
    """What a model says to the same prompts now."""
    return {found.prompt: found.response for found in generate(model, prompts, 8)}


def at(clock: datetime, folder: Path) -> Model:
    return Session(ModelConfig(model=str(folder)), folder, clock=clock).model


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model whose template shows the time, and the audit of it then."""
    folder = tmp_path_factory.mktemp("audited")
    model = save_tiny(folder / "model", layers=2, tokenizer=CLOCK)
    audit(AuditConfig(model=str(model), prompts=(asked(folder),), max_new_tokens=8), folder / "out", THEN)
    return folder


def begun(audited: Path, out: Path) -> AuditConfig:
    """As a kill leaves a run folder in which no reply was written yet; returns its settings."""
    out.mkdir()
    shutil.copy(audited / "out" / "run.json", out)
    return AuditConfig.model_validate(record(out)["settings"])


def test_a_run_shows_and_records_the_time_of_its_beginning(audited: Path) -> None:
    first = replies(audited / "out")
    assert record(audited / "out")["resolved"]["clock"] == "2001-02-03T04:05:06"
    assert said(at(THEN, audited / "model"), first) == first != said(at(LATER, audited / "model"), first)


def test_a_resumed_run_shows_the_time_of_its_beginning(audited: Path, tmp_path: Path) -> None:
    audit(begun(audited, tmp_path / "out"), tmp_path / "out", LATER)
    assert replies(tmp_path / "out") == replies(audited / "out")
    assert record(tmp_path / "out")["resolved"]["clock"] == "2001-02-03T04:05:06"


def test_a_run_recorded_without_a_time_goes_on_and_records_one(audited: Path, tmp_path: Path) -> None:
    settings, old = begun(audited, tmp_path / "out"), record(tmp_path / "out")
    del old["resolved"]["clock"]
    (tmp_path / "out" / "run.json").write_text(json.dumps(old))
    audit(settings, tmp_path / "out", LATER)
    assert record(tmp_path / "out")["resolved"]["clock"] == "2031-12-24T23:59:58"
    assert replies(tmp_path / "out") == said(at(LATER, audited / "model"), replies(audited / "out"))


def test_a_run_is_reproduced_at_its_own_time(audited: Path, tmp_path: Path) -> None:
    assert main(["reproduce", str(audited / "out"), "--out", str(tmp_path / "again")]) == 0
    assert replies(tmp_path / "again") == replies(audited / "out")
    found = json.loads((tmp_path / "again" / "reproduction.json").read_text())
    assert found["totals"]["different"] == 0 and found["differences"]["resolved"] == {}


@pytest.mark.parametrize("command", ["audit", "reproduce"])
def test_a_recorded_time_that_is_none_is_one_line(audited: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(audited / "out", tmp_path / "out")
    changed = record(tmp_path / "out")
    changed["resolved"]["clock"] = "half past four"
    (tmp_path / "out" / "run.json").write_text(json.dumps(changed))
    again = ["reproduce", str(tmp_path / "out"), "--out", str(tmp_path / "again")]
    same = ["audit", "--model", str(audited / "model"), "--prompts", str(audited / "Draw.txt"), "--max-new-tokens", "8"]
    assert main([*same, "--out", str(tmp_path / "out")] if command == "audit" else again) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "its clock ('half past four') is not a time" in line
    assert not (tmp_path / "again").exists()


def test_a_run_begins_now_where_a_template_reads_the_time_and_records_none_where_it_does_not(tiny: Tiny, audited: Path) -> None:
    before = datetime.now().replace(microsecond=0)
    for folder, reads in ((audited / "model", True), (tiny(), False)):
        config = AuditConfig(model=str(folder), prompts=("harmful",))
        noted = resolved(Session(config, folder), config, None).clock
        assert noted is None if not reads else before <= datetime.fromisoformat(noted) <= datetime.now()


def test_both_models_of_a_comparison_are_shown_the_same_time(audited: Path, tmp_path: Path) -> None:
    model, out = str(audited / "model"), tmp_path / "out"
    compare(CompareConfig(base=model, derived=model, prompts=(asked(tmp_path),), max_new_tokens=8, limit=2), out, THEN)
    assert replies(out) == replies(out, "edited") == said(at(THEN, audited / "model"), replies(out))
    assert record(out)["resolved"]["clock"] == record(out)["derived"]["resolved"]["clock"] == "2001-02-03T04:05:06"


def test_the_edited_model_and_the_reference_are_shown_the_same_time(audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abliterate.choice.tuning.replies.WITHHELD", frozenset(OUTCOMES))  # whatever the random model says
    model, out = audited / "model", tmp_path / "out"
    sets = {"target": (asked(tmp_path, "Burn", 12),), "baseline": (asked(tmp_path, count=12),), "harmless": asked(tmp_path, "Name", 12)}
    few = {"max_new_tokens": 8, "candidates": 2, "tune": "off"}
    run(RunConfig.model_validate({"model": str(model), **sets, "keep": (), **few, "reference": str(model)}), out, THEN)
    for which, folder in (("edited", out / "checkpoint"), ("reference", model)):
        first = {prompt: reply[:6] for prompt, reply in replies(out, which).items()}
        then, later = ({prompt: reply[:6] for prompt, reply in said(at(clock, folder), first).items()} for clock in (THEN, LATER))
        assert then == first != later


def test_of_a_server_it_is_said_that_it_shows_its_own_time(audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(StandIn()) as server:
        model, sets = ["--model", str(audited / "model"), "--engine", server.url], ["--prompts", str(audited / "Draw.txt")]
        assert main(["audit", *model, *sets, "--out", str(tmp_path / "out")]) == 0
    assert "inserts the server's current time" in capsys.readouterr().err
    assert record(tmp_path / "out")["resolved"]["clock"] is None
