"""A real server, ``transformers serve`` on this computer: its greedy replies are those of the model in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving import transformers_serve

from abliterate.cli.main import main
from abliterate.model.fixtures.refuser import smollm2_refuser
from abliterate.outcomes.records import OUTCOMES
from abliterate.replies.transcripts import Transcript, read

Tiny = Callable[..., Path]
USERS_CACHE = os.environ.get("ABLITERATE_CACHE")  # read before the tests get one of their own: the real model is built once
WORDS = ["stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror", "harbour", "lantern", "meadow"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with transformers_serve(tmp_path_factory.mktemp("serve")) as made:
        yield made


def prompts(folder: Path, **texts: str) -> list[str]:
    flags = []
    for role, text in texts.items():
        (folder / f"{role}.txt").write_text("\n".join(text.format(w) for w in WORDS) + "\n", encoding="utf-8")
        flags += [f"--{role}", str(folder / f"{role}.txt")]
    return flags


def replies(out: Path, which: str = "base") -> dict[tuple[str, str], Transcript]:
    return {(t.set, t.id): t for t in read(out / "transcripts" / f"{which}.jsonl")}


def responses(out: Path, which: str = "base") -> dict[tuple[str, str], str]:
    return {key: t.response for key, t in replies(out, which).items()}


def test_a_run_over_a_server_ends_with_the_figures_of_one_in_this_process(
    url: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abliterate.choice.tuning.replies.WITHHELD", frozenset(OUTCOMES))  # whatever the random model says
    model = tiny()
    flags = prompts(tmp_path, target="Burn the {}!", baseline="Draw the {}.", harmless="Name a {}")
    call = ["run", "--model", str(model), *flags, "--max-new-tokens", "6", "--candidates", "2", "--out"]
    assert main([*call, str(tmp_path / "here")]) == 0
    assert main([*call, str(tmp_path / "there"), "--engine", url]) == 0
    for which in ("base", "edited"):
        assert responses(tmp_path / "there", which) == responses(tmp_path / "here", which)
    assert responses(tmp_path / "there") != responses(tmp_path / "there", "edited")
    here, there = (json.loads((tmp_path / out / "report.json").read_text(encoding="utf-8")) for out in ("here", "there"))
    for key in ("sets", "by_topic", "drift", "edit", "not_measured"):
        assert there[key] == here[key]
    engines = there["run"]["resolved"]["engines"]
    assert engines["base"]["model"] == str(model) and engines["edited"]["model"] == str(tmp_path / "there" / "checkpoint")
    assert {engine["chosen_by"] for engine in engines.values()} == {"its folder, loaded on demand"}


@pytest.mark.parametrize("how", ["--engine", "--model"])
def test_an_audit_over_a_server_gives_the_same_replies(how: str, url: str, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny(tied=True, seed=3)  # a family whose answers the server doesn't strip
    asked = prompts(tmp_path, prompts="Where is the {}?")
    assert main(["audit", "--model", str(model), *asked, "--max-new-tokens", "9", "--out", str(tmp_path / "here")]) == 0
    there = ["--model", str(model), "--engine", url] if how == "--engine" else ["--model", url, "--engine-model", str(model)]
    assert main(["audit", *there, *asked, "--max-new-tokens", "9", "--out", str(tmp_path / "there")]) == 0
    assert responses(tmp_path / "there") == responses(tmp_path / "here")
    assert {t.new_tokens for t in replies(tmp_path / "there").values()} == {9}


@pytest.mark.parametrize("advice", [{"repetition_penalty": 5.0}, {"do_sample": True, "temperature": 3.0}])
def test_replies_are_greedy_whatever_the_generation_config_says(advice: dict[str, float], url: str, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny()
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 0, **advice}))
    call = ["audit", "--model", str(model), *prompts(tmp_path, prompts="Where is the {}?"), "--max-new-tokens", "9", "--out"]
    assert main([*call, str(tmp_path / "here")]) == main([*call, str(tmp_path / "there"), "--engine", url]) == 0
    assert responses(tmp_path / "there") == responses(tmp_path / "here")


def test_a_model_that_the_server_can_not_load_is_one_line(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = prompts(tmp_path, prompts="Where is the {}?")
    call = ["audit", "--model", url, "--engine-model", str(tmp_path / "nowhere"), *asked, "--out", str(tmp_path / "out")]
    assert main(call) == 2
    assert [line for line in capsys.readouterr().err.splitlines() if "HTTP 500" in line and url in line]


@pytest.mark.real
@pytest.mark.slow
def test_the_real_small_model_says_the_same_over_a_server(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if USERS_CACHE is None:
        monkeypatch.delenv("ABLITERATE_CACHE")
    else:
        monkeypatch.setenv("ABLITERATE_CACHE", USERS_CACHE)
    call = [
        "audit",
        "--model",
        str(smollm2_refuser()),
        "--prompts",
        "harmful",
        "harmless",
        "--limit",
        "4",
        "--max-new-tokens",
        "12",
        "--out",
    ]
    assert main([*call, str(tmp_path / "here")]) == main([*call, str(tmp_path / "there"), "--engine", url]) == 0
    assert responses(tmp_path / "there") == responses(tmp_path / "here")
    report = json.loads((tmp_path / "there" / "report.json").read_text(encoding="utf-8"))
    assert report["sets"]["harmful"]["base"]["refused"]["k"] >= 3
