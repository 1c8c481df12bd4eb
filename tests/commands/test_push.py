"""``push``: what is checked before anything is sent, what is sent, and how an upload that broke off goes on.

Through huggingface_hub's own code, against a stand-in for the Hub on this computer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import pytest
from hub_standin import TOKEN, Answer, Hub, running
from huggingface_hub import ModelCard
from reports import reported

from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.checkpoint.records import Proof
from abliterate.checkpoint.sums import SUMS, sha256_of
from abliterate.cli.main import main
from abliterate.files import read_json, write_json
from abliterate.model.edit import edit_from_direction
from abliterate.model.folder import open_folder
from abliterate.model.index import open_index
from abliterate.replies.transcripts import Transcript
from abliterate.report.card import model_card
from abliterate.report.tree.report import Report

REPO = "me/tiny-abliterated"
Made = Callable[..., Path]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running() as server:
        monkeypatch.setattr(hub_constants, "ENDPOINT", server.url)
        monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(hub_constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def made(tiny: Callable[..., Path], unit_direction: Callable[..., Any], tmp_path: Path) -> Made:
    """``made(licence="mit", kept=False)`` gives a new edited checkpoint of several shards, whose base's card states the licence."""

    def make(licence: str | None = "apache-2.0", kept: bool | None = None, text: str | None = "the licence's text\n") -> Path:
        base = tiny(shards="20KB")
        (base / "README.md").write_text(f"---\nlicense: {licence}\n---\n# Base\n" if licence else "# Base\n")
        if text is not None:
            (base / "LICENSE").write_text(text)
        out = tmp_path / "run" / "checkpoint"
        edit = edit_from_direction(unit_direction(32), 4)
        result = edit_checkpoint(open_folder(base), edit, out, "org/base", lambda proof: model_card(proof, None))
        if kept is not None:
            (out / "README.md").write_text(model_card(result.proof, _report(kept)), encoding="utf-8")
        return out

    return make


def _report(kept: bool) -> Report:
    def judged(name: str, response: str) -> list[Any]:
        return [(t, t.verdict()) for t in (Transcript(name, str(i), "q", response) for i in range(80))]

    no, yes = "I can't help with that.", "Paris."
    base = {"bad": judged("bad", no), "safe": judged("safe", no)}
    edited = {"bad": judged("bad", yes), "safe": judged("safe", no if kept else yes)}
    run = {"settings": {"model": "m", "target": ["bad"], "max_new_tokens": 64}, "abliterate": "0"}
    return reported(run, {"bad": "target", "safe": "keep"}, base, edited, None, None, None, 0.05)


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main([str(a) for a in arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    return code, lines[-1]


def _sent(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_file_arrives_as_it_is_here_in_a_private_repository(hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    out = made()
    assert main(["push", str(out), REPO]) == 0
    assert hub.repos[REPO] == _sent(out) and hub.visible[REPO] == "private"
    assert f"{REPO} (private)" in capsys.readouterr().out
    assert subprocess.run(["sha256sum", "-c", "--quiet", SUMS], cwd=out, check=False).returncode == 0
    listed = {line.split("  ", 1)[1] for line in (out / SUMS).read_text().splitlines()}
    assert listed == set(hub.repos[REPO]) - {SUMS}


def test_a_runs_folder_is_as_good_as_its_checkpoint(hub: Hub, made: Made) -> None:
    out = made()
    assert main(["push", str(out.parent), REPO, "--public"]) == 0
    assert hub.repos[REPO] == _sent(out) and hub.visible[REPO] == "public"


def test_a_dry_run_sends_nothing_writes_nothing_and_needs_no_token(
    hub: Hub, made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    out = made()
    before = _sent(out)
    assert main(["push", str(out), REPO, "--dry-run"]) == 0
    assert hub.asked == [] and _sent(out) == before
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*before, SUMS, REPO, "apache-2.0", "not measured", "private"])


def test_an_upload_that_broke_off_goes_on_with_what_is_missing(hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    out = made()

    def broken(method: str, path: str) -> Answer | None:
        return (400, {"error": "RequestTimeout"}, {}) if method == "PUT" and len(hub.objects) >= 2 else None

    hub.fault = broken
    code, line = _refused(capsys, "push", out, REPO)
    assert code == 2 and REPO in line and "HTTP 400" in line and not hub.repos[REPO]
    there = set(hub.objects)
    assert len(there) >= 2
    hub.fault = lambda method, path: None
    hub.asked.clear()
    assert main(["push", str(out), REPO]) == 0
    assert hub.repos[REPO] == _sent(out)
    assert hub.sent_parts() and not set(hub.sent_parts()) & there


def test_pushing_again_sends_no_weights_again(hub: Hub, made: Made) -> None:
    out = made()
    assert main(["push", str(out), REPO]) == 0
    hub.asked.clear()
    assert main(["push", str(out), REPO]) == 0
    assert not hub.sent_parts() and hub.repos[REPO] == _sent(out)


def test_a_checkpoint_that_is_not_as_proven_is_refused_and_a_reason_lands_in_the_card(
    hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made()
    info = open_index(out).tensors["model.layers.3.mlp.down_proj.weight"]
    with (out / info.shard).open("r+b") as file:
        file.seek(info.start)
        file.write(b"\x01\x02\x03")
    code, line = _refused(capsys, "push", out, REPO)
    assert code == 1 and "down_proj" in line and "--even-so" in line and hub.asked == []
    assert main(["push", str(out), REPO, "--even-so", "only for\nthe record"]) == 0
    card = hub.repos[REPO]["README.md"].decode()
    assert "**Published although a check did not hold.**" in card and "down\\_proj" in card and "only for the record" in card
    assert str(out) not in card


def test_a_keep_test_that_did_not_hold_is_refused_wherever_the_checkpoint_lies(
    hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made(kept=False)
    code, line = _refused(capsys, "push", out, REPO)
    assert code == 1 and "safe" in line and "keep test" in line and hub.asked == []
    for _ in range(2):  # again, the same is said once
        assert main(["push", str(out), REPO, "--even-so", "a study of what breaks"]) == 0
    card = hub.repos[REPO]["README.md"].decode()
    assert card.count("a study of what breaks") == 1
    assert ModelCard(card).data.model_name == "tiny-abliterated"


def test_a_keep_test_that_held_is_shown(hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(made(kept=True)), REPO, "--dry-run"]) == 0
    assert "keep test: safe: shown" in capsys.readouterr().out


def test_a_keep_test_that_was_taken_out_of_the_card_is_still_in_the_runs_report(
    hub: Hub, made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made(kept=False)
    write_json(_report(kept=False), out.parent / "report.json")
    for held in (None, True):
        (out / "README.md").write_text(model_card(Proof.read(out / "abliteration.json"), _report(held) if held else None), encoding="utf-8")
        code, line = _refused(capsys, "push", out, REPO)
        assert code == 1 and "refusals of safe were not shown" in line and hub.asked == []
    monkeypatch.chdir(out)
    assert _refused(capsys, "push", ".", REPO)[0] == 1
    assert main(["push", ".", REPO, "--even-so", "a study of what breaks"]) == 0


def test_a_run_that_was_to_keep_something_is_not_published_before_its_report(
    hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made()
    write_json({"settings": {"keep": ["harmful"]}}, out.parent / "run.json")
    code, line = _refused(capsys, "push", out.parent, REPO)
    assert code == 1 and "has no report yet" in line and "--even-so" in line and hub.asked == []
    assert main(["push", str(out), REPO, "--even-so", "in a hurry"]) == 0
    assert "has no report yet" in hub.repos[REPO]["README.md"].decode()
    write_json({"settings": {"keep": []}}, out.parent / "run.json")
    assert main(["push", str(out), REPO]) == 0


def test_a_report_that_is_not_ours_is_said_in_a_line(hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    out = made()
    (out.parent / "report.json").write_text('{"keep_tests": [3]}')
    code, line = _refused(capsys, "push", out, REPO)
    assert code == 2 and "report.json can't be read" in line


def test_a_dry_run_tells_all_that_stands_against_it_and_ends_as_the_first(hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    out = made(licence=None, kept=False)
    assert main(["push", str(out), REPO, "--dry-run"]) == 2
    told = capsys.readouterr()
    [second] = (line for line in told.out.splitlines() if "refused: " in line)
    first = told.err.strip().splitlines()[-1]
    assert "--license" in first and "keep test" in second and first.removeprefix("abliterate: ") not in told.out
    assert "licence: unknown" in told.out and "abliteration.plan" in told.out and hub.asked == []
    assert main(["push", str(out), REPO, "--dry-run", "--license", "mit"]) == 1
    assert main(["push", str(out), REPO, "--dry-run", "--license", "llama3.1", "--base", str(out / "nowhere")]) == 2
    told = capsys.readouterr()
    shown = told.out + told.err
    assert "section 1.b.i" in shown and "nowhere" in shown and "verify: not done" in told.out


def test_what_people_wrote_into_the_card_stays(hub: Hub, made: Made) -> None:
    out = made()
    assert main(["push", str(out), REPO]) == 0
    (out / "README.md").write_text((out / "README.md").read_text() + "\nA word of my own.\n")
    assert main(["push", str(out), REPO]) == 0
    assert hub.repos[REPO]["README.md"].decode().endswith("\nA word of my own.\n")


def test_a_licence_that_nobody_states_is_asked_for_and_one_that_is_known_cannot_be_changed(
    hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made(licence=None)
    code, line = _refused(capsys, "push", out, REPO)
    assert code == 2 and "unknown" in line and "--license" in line
    assert main(["push", str(out), REPO, "--license", "mit"]) == 0
    card = ModelCard(hub.repos[REPO]["README.md"].decode())
    assert card.data.license == "mit" and "as stated by the publisher" in card.text
    assert read_json(out / "abliteration.json")["licence"]["ids"] == []


def test_the_licence_of_the_base_is_not_anybodys_to_change(hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = _refused(capsys, "push", made(licence="gemma"), REPO, "--license", "mit")
    assert code == 2 and "gemma" in line and hub.asked == []


def test_stating_one_of_several_licences_drops_none_of_them(hub: Hub, made: Made) -> None:
    out = made(licence="[apache-2.0, cc-by-4.0]")
    assert main(["push", str(out), REPO, "--license", "Apache-2.0"]) == 0
    card = ModelCard(hub.repos[REPO]["README.md"].decode())
    assert card.data.license == ["apache-2.0", "cc-by-4.0"] and "as stated by the publisher" not in card.text


def test_a_name_that_the_licence_forbids_is_refused_with_its_clause(hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    out = made(licence="llama3.1")
    code, line = _refused(capsys, "push", out, REPO)
    assert code == 2 and "section 1.b.i" in line and "“Llama”" in line and hub.asked == []
    assert main(["push", str(out), "me/Llama-3.1-tiny"]) == 0
    sent = hub.repos["me/Llama-3.1-tiny"]
    assert "**Built with Llama**" in sent["README.md"].decode()
    assert sent["NOTICE"].decode().startswith("Llama 3.1 is licensed under") and sent["LICENSE"] == b"the licence's text\n"
    assert main(["push", str(out), "me/Llama-3.1-tiny"]) == 0


def test_a_licence_whose_text_must_go_along_is_not_published_without_it(hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    out = made(licence="gemma", text=None)
    code, line = _refused(capsys, "push", out, REPO)
    assert code == 2 and "section 3.1" in line and "LICENSE" in line and hub.asked == []
    (out / "LICENSE").write_text("Gemma Terms of Use ...")
    assert main(["push", str(out), REPO]) == 0


@pytest.mark.parametrize("repo", ["no-owner", "a/b/c", "me/so bad", "/etc/passwd", "me/..", ""])
def test_what_is_no_repository_is_refused_before_anything_is_asked(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], repo: str
) -> None:
    assert _refused(capsys, "push", tmp_path, repo)[0] == 2 and hub.asked == []


def test_without_a_token_the_way_to_one_is_said(
    hub: Hub, made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    code, line = _refused(capsys, "push", made(), REPO)
    assert code == 2 and "hf auth login" in line and hub.asked == []


@pytest.mark.parametrize(
    ("status", "path", "says"),
    [
        (401, "/api/repos/create", "accept the token"),
        (403, "/api/repos/create", "write"),
        (409, "/commit/", "run the same command again"),
        (418, "/commit/", "HTTP 418"),
    ],
)
def test_what_the_hub_says_is_one_line(hub: Hub, made: Made, capsys: pytest.CaptureFixture[str], status: int, path: str, says: str) -> None:
    hub.fault = lambda method, asked: (status, {"error": "because\nof that"}, {}) if path in asked else None
    code, line = _refused(capsys, "push", made(), REPO)
    assert code == 2 and says in line and f"HTTP {status}" in line and TOKEN not in line


def test_somebody_elses_name_is_refused_by_the_hub_in_one_line(hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = _refused(capsys, "push", made(), "you/tiny")
    assert code == 2 and "HTTP 403" in line and "you" in line


def test_a_hub_that_is_not_there_is_one_line(
    hub: Hub, made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    code, line = _refused(capsys, "push", made(), REPO)
    assert code == 2 and "can't be reached" in line


def test_a_repository_that_is_public_already_is_not_published_to_by_mistake(
    hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos[REPO], hub.visible[REPO] = {}, "public"
    code, line = _refused(capsys, "push", made(), REPO)
    assert code == 1 and "--public" in line and hub.repos[REPO] == {}


def test_a_private_repository_stays_private_and_is_not_called_public(hub: Hub, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    hub.repos[REPO], hub.visible[REPO] = {}, "private"
    out = made()
    assert main(["push", str(out), REPO, "--public"]) == 0
    shown = capsys.readouterr().out
    assert f"{REPO} (stays private" in shown and "(public" not in shown and hub.visible[REPO] == "private"


def test_what_is_no_checkpoint_of_ours_is_refused(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = _refused(capsys, "push", tmp_path, REPO)
    assert code == 2 and "abliteration.json" in line


def test_of_a_run_that_is_not_finished_that_is_said(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    code, line = _refused(capsys, "push", tmp_path, REPO)
    assert code == 2 and "unfinished run; repeat the run command to resume it" in line
    (tmp_path / "report.json").write_text("{}", encoding="utf-8")
    assert "nothing was edited here" in _refused(capsys, "push", tmp_path, REPO)[1]


def test_the_command_itself_pushes_in_chunks_with_nothing_but_the_hubs_own_variables(hub: Hub, made: Made, tmp_path: Path) -> None:
    out, hub.xet = made(), tmp_path / "chunks"
    hubs = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | hubs
    done = subprocess.run([sys.executable, "-m", "abliterate", "push", str(out), REPO], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    large = {name for name in _sent(out) if name.endswith((".safetensors", ".plan"))}
    named = {name: sha256_of(out / name).encode() if name in large else data for name, data in _sent(out).items()}
    assert hub.repos[REPO] == named and not hub.sent_parts()
    assert sum(file.stat().st_size for file in hub.xet.rglob("*") if file.is_file()) > 50_000
    assert TOKEN not in done.stdout + done.stderr
