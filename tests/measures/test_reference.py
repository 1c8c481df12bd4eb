"""``--reference``: how much of a model whose behaviour is known comes back, in a run and between two checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHATML, byte_tokenizer, save_tiny
from safetensors.torch import save_file

from abliterate.cli.main import main
from abliterate.compute.load import InMemory
from abliterate.compute.session import Session

WORDS = ["stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror", "harbour", "lantern", "meadow"]
ROLES = {"target": "Burn the {}!", "baseline": "Draw the {}.", "keep": "Steal the {}?", "harmless": "Name a {}"}


@dataclass(frozen=True)
class Made:
    """A finished run towards a reference; ``call`` gives its command line, into another folder."""

    reference: Path
    out: Path
    call: Callable[[Path], list[str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("reference")
    model, reference = save_tiny(place / "model", seed=1, says="I won't."), save_tiny(place / "truth", seed=2)
    flags = []
    for role, text in ROLES.items():
        (place / f"{role}.txt").write_text("".join(text.format(word) + "\n" for word in WORDS), encoding="utf-8")
        flags += [f"--{role}", str(place / f"{role}.txt")]

    def call(out: Path) -> list[str]:
        options = ["--max-new-tokens", "4", "--candidates", "2", "--reference", str(reference)]
        return ["run", "--model", str(model), *flags, *options, "--out", str(out)]

    assert main(call(place / "run")) == 0
    return Made(reference, place / "run", call)


def report_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "report.json").read_text(encoding="utf-8")))


def test_a_run_tells_of_every_set_how_much_came_back(made: Made) -> None:
    report = report_of(made.out)
    found = report["recovery"]
    assert found["reference"] == "truth" and found["agree_tokens"] == 4
    assert {name: entry["role"] for name, entry in found["sets"].items()} == {name: name for name in ROLES}
    for name, entry in found["sets"].items():
        assert entry["n"] == entry["agree_base"]["n"] == entry["agree_edited"]["n"] == report["sets"][name]["n"]
        assert entry["gone"] == pytest.approx(1 - entry["kl_edited"] / entry["kl_base"]) and entry["kl_base"] > 0.01
    assert (made.out / "recovery.json").is_file() and (made.out / "transcripts" / "reference.jsonl").is_file()
    assert not list(made.out.glob("recovery-*")) and "KL from truth " in (made.out / "report.html").read_text("utf-8")
    assert report["run"]["reference"]["model_path"] == str(made.reference)
    assert report["run"]["model_hashes"]["reference/model.safetensors"] != report["run"]["model_hashes"]["model.safetensors"]


def test_a_run_goes_on_with_the_replies_of_the_reference_that_are_there(made: Made, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made.out, tmp_path / "run"))
    for name in ("report.json", "recovery.json"):
        (out / name).unlink()
    replies = out / "transcripts" / "reference.jsonl"
    whole = replies.read_bytes()
    replies.write_bytes(whole[: len(whole) // 2])
    assert main(made.call(out)) == 0
    assert replies.read_bytes() == whole
    assert {**report_of(out), "cost": None} == {**report_of(made.out), "cost": None}


def test_one_model_is_in_memory_at_a_time(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: set[Path] = set()
    own, release = Session._own, Session.release

    def holding(self: Session) -> InMemory:
        assert not held - {self.folder.path}
        held.add(self.folder.path)
        return own(self)  # type: ignore[return-value]

    def released(self: Session) -> None:
        held.discard(self.folder.path)
        release(self)

    monkeypatch.setattr(Session, "_own", holding)
    monkeypatch.setattr(Session, "release", released)
    assert main(made.call(tmp_path / "run")) == 0


def test_a_report_made_again_keeps_the_recovery_and_the_controls(made: Made, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made.out, tmp_path / "run"))
    assert main(["report", str(out)]) == 0
    before, after = report_of(made.out), report_of(out)
    assert before["controls"] is not None and all(after[key] == before[key] for key in ("recovery", "controls", "not_measured"))


def test_another_reference_is_another_run(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(made.out, tmp_path / "run"))
    call = made.call(out)
    call[call.index("--reference") + 1] = str(save_tiny(tmp_path / "other", seed=3))
    assert main(call) == 2
    assert "another --reference" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tokenizer": byte_tokenizer(bos="<s>")}, "give a model with the same vocabulary"),
        ({"tokenizer": byte_tokenizer(CHATML + "So: ")}, "its chat template encodes the prompts differently"),
    ],
)
def test_a_reference_that_won_t_do_is_said_before_any_work(
    given: dict[str, Any], said: str, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = made.call(tmp_path / "run")
    call[call.index("--reference") + 1] = str(save_tiny(tmp_path / "other", **given))
    assert main(call) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def compared(base: Path | str, derived: Path | str, reference: Path | str, out: Path, *more: str) -> list[str]:
    return ["compare", "--base", str(base), "--derived", str(derived), "--reference", str(reference), "--out", str(out), *more]


def test_between_two_checkpoints_all_comes_back_where_the_derived_one_is_the_reference(made: Made, tmp_path: Path) -> None:
    base, asked = made.out / "checkpoint", tmp_path / "asked.txt"
    asked.write_text("".join(f"Name the {word}.\n" for word in WORDS[:5]), encoding="utf-8")
    flags = ["--prompts", str(asked), "--limit", "4", "--max-new-tokens", "40"]
    assert main(compared(base, made.reference, made.reference, tmp_path / "out", *flags)) == 0
    report = report_of(tmp_path / "out")
    entry = report["recovery"]["sets"]["asked"]
    assert entry["role"] == "audited" and entry["n"] == 4 and report["controls"] is None
    assert entry["kl_base"] > 0.1 and entry["gone"] == pytest.approx(1, abs=1e-4)
    assert entry["agree_edited"]["rate"] == 1 and entry["agree_base"]["rate"] < 1
    assert report["recovery"]["agree_tokens"] == 32


@pytest.mark.parametrize("more", [("--derived", "http://host:1/v1", "--prompts", "harmful"), ("--weights-only",)])
def test_where_nothing_is_predicted_there_is_nothing_to_recover(
    more: tuple[str, ...], made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(compared(made.reference, made.reference, made.reference, tmp_path / "out", *more)) == 2
    assert "--reference compares what the models predict" in capsys.readouterr().err


def test_a_server_is_no_reference(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(compared(made.reference, made.reference, "http://host:1/v1", tmp_path / "out", "--prompts", "harmful")) == 2
    assert "--reference is a server's URL" in capsys.readouterr().err


def test_an_edit_that_is_half_undone_is_half_way_back(made: Made, tmp_path: Path) -> None:
    """The base is the reference edited in full, the derived model the reference edited weakly."""
    save_file({"direction": torch.randn(32, generator=torch.Generator().manual_seed(1))}, tmp_path / "r.safetensors")
    for name, strength in (("full", "1"), ("weak", "0.2")):
        edit = ["edit", "--model", str(made.reference), "--direction", str(tmp_path / "r.safetensors"), "--strength", strength]
        assert main([*edit, "--out", str(tmp_path / name)]) == 0
    (tmp_path / "asked.txt").write_text("".join(f"Name the {word}.\n" for word in WORDS[:5]), encoding="utf-8")
    flags = ["--prompts", str(tmp_path / "asked.txt"), "--limit", "4", "--max-new-tokens", "3"]
    assert main(compared(tmp_path / "full", tmp_path / "weak", made.reference, tmp_path / "out", *flags)) == 0
    assert 0.5 < report_of(tmp_path / "out")["recovery"]["sets"]["asked"]["gone"] < 1
