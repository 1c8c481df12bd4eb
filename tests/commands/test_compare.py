"""The command `compare`: two existing models asked the same, and what differs between their weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, save_tiny
from packed import store, tensors_of
from safetensors.torch import save_file
from serving import StandIn, completion, running

from abliterate.cli.main import main
from abliterate.config import CompareConfig
from abliterate.errors import InputError

Tiny = Callable[..., Path]


@dataclass(frozen=True)
class Compared:
    """A model and its edit, compared in the folder ``out``; ``flags`` name a set that is asked and one that is kept."""

    base: Path
    derived: Path
    flags: list[str]
    out: Path
    shown: str

    def again(self, out: Path) -> list[str]:
        return call(self.base, self.derived, out, *self.flags)


def call(base: Path | str, derived: Path | str, out: Path, *more: str) -> list[str]:
    return ["compare", "--base", str(base), "--derived", str(derived), "--out", str(out), "--limit", "4", "--max-new-tokens", "3", *more]


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    made, folder = [], tmp_path_factory.mktemp("sets")
    for role, text in (("prompts", "Tell me about number {}."), ("keep", "Burn house {}.")):
        (folder / f"{role}.txt").write_text("".join(text.format(n) + "\n" for n in range(5)), encoding="utf-8")
        made += [f"--{role}", str(folder / f"{role}.txt")]
    return made


@pytest.fixture(scope="module")
def compared(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Compared:
    place = tmp_path_factory.mktemp("compared")
    base, derived, out = save_tiny(place / "base", dtype=torch.bfloat16), place / "derived", place / "out"
    save_file({"direction": torch.randn(32, generator=torch.Generator().manual_seed(1))}, place / "r.safetensors")
    assert main(["edit", "--model", str(base), "--direction", str(place / "r.safetensors"), "--out", str(derived)]) == 0
    with redirect_stdout(StringIO()) as shown:
        assert main(call(base, derived, out, *flags)) == 0
    return Compared(base, derived, flags, out, " ".join(shown.getvalue().split()))


def report_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "report.json").read_text(encoding="utf-8")))


def test_both_models_are_asked_and_their_weights_compared(compared: Compared) -> None:
    report = report_of(compared.out)
    assert {name: entry["role"] for name, entry in report["sets"].items()} == {"prompts": "audited", "keep": "keep"}
    assert report["sets"]["prompts"]["edited"]["withheld"]["n"] == 4 and report["sets"]["prompts"]["paired"] is not None
    assert report["keep_test"]["set"] == "keep" and report["edit"] is None
    assert report["drift"]["set"] == "harmless" and report["drift"]["n"] == 4 and report["drift"]["kl_first_token"] > 0
    assert report["weights"]["verdict"] == "directional" and report["weights"]["changed"]["attention"] == 4
    rows = json.loads((compared.out / "weights.json").read_text(encoding="utf-8"))["tensors"]
    assert len(rows) == 9 and {row["rank"] for row in rows} == {1}
    assert {path.name for path in (compared.out / "transcripts").iterdir()} == {"base.jsonl", "edited.jsonl"}
    page = (compared.out / "report.html").read_text(encoding="utf-8")
    assert "What differs between the weights" in page and "McNemar" in page
    assert "weights: 9 of 39 tensors differ; a directional edit" in compared.shown


def test_the_same_command_again_resumes_and_another_pair_is_refused(
    compared: Compared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(compared.out, tmp_path / "out"))
    (out / "report.json").unlink()
    replies = out / "transcripts" / "edited.jsonl"
    replies.write_text("".join(replies.read_text(encoding="utf-8").splitlines(keepends=True)[:3]), encoding="utf-8")
    assert main(compared.again(out)) == 0
    before, after = ({**report_of(path), "cost": None} for path in (compared.out, out))
    assert after == before
    assert main(call(compared.derived, compared.base, out, *compared.flags)) == 2
    assert "--base" in capsys.readouterr().err


def test_a_report_made_again_keeps_what_is_known_of_the_weights(compared: Compared, tmp_path: Path) -> None:
    out = Path(shutil.copytree(compared.out, tmp_path / "out"))
    assert main(["report", str(out)]) == 0
    before, after = report_of(compared.out), report_of(out)
    assert all(after[key] == before[key] for key in ("weights", "sets", "drift"))


def test_weights_alone_are_compared_without_asking_anything(compared: Compared, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["compare", "--base", str(compared.base), "--derived", str(compared.derived), "--weights-only", "--out", str(out)]) == 0
    report = report_of(out)
    assert report["weights"] == report_of(compared.out)["weights"] and report["sets"] == {} and report["drift"] is None
    assert not (out / "transcripts").exists() and (out / "report.html").is_file()


def test_a_model_and_its_copy_do_not_differ(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny()
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    assert main(["compare", "--base", str(base), "--derived", str(copy), "--weights-only", "--out", str(tmp_path / "o")]) == 0
    assert report_of(tmp_path / "o")["weights"]["verdict"] == "identical"


def test_other_training_is_told(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny()
    other = Path(shutil.copytree(base, tmp_path / "other"))
    store(other, {n: t + 0.01 * torch.randn_like(t) for n, t in tensors_of(base).items()})
    assert main(["compare", "--base", str(base), "--derived", str(other), "--weights-only", "--out", str(tmp_path / "o")]) == 0
    assert report_of(tmp_path / "o")["weights"]["verdict"] == "other"


@pytest.mark.parametrize("difference", ["architectures", "sizes"])
def test_weights_of_models_that_have_nothing_in_common_are_not_compared(difference: str, tiny: Tiny, tmp_path: Path) -> None:
    derived = tiny("qwen2") if difference == "architectures" else tiny(layers=2)
    assert main(["compare", "--base", str(tiny()), "--derived", str(derived), "--weights-only", "--out", str(tmp_path / "o")]) == 0
    weights = report_of(tmp_path / "o")["weights"]
    assert not weights["compared"] and f"different {difference}" in weights["why"]


def test_models_with_other_tokenizers_are_asked_all_the_same(
    tiny: Tiny, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    derived = save_tiny(tmp_path / "derived", tokenizer=byte_tokenizer(bos="<s>"))  # a token more at the front moves all others
    assert main(call(tiny(), derived, tmp_path / "compared", *flags)) == 0
    report = report_of(tmp_path / "compared")
    assert "different tokenizers" in report["weights"]["why"] and report["drift"] is None
    assert report["sets"]["prompts"]["edited"]["withheld"]["n"] == 4
    assert "weights not compared" in capsys.readouterr().out


def test_a_model_on_a_server_is_asked_there_and_its_weights_are_not_compared(tiny: Tiny, flags: list[str], tmp_path: Path) -> None:
    with running(StandIn()) as server:
        server.answers = lambda prompt: completion("I can't help with that.")
        assert main(call(tiny(), server.url, tmp_path / "compared", *flags)) == 0
    report = report_of(tmp_path / "compared")
    assert report["weights"] == {"compared": False, "why": "a server doesn't show its model's weights"} and report["drift"] is None
    assert report["sets"]["keep"]["edited"]["refused"]["k"] == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give --prompts or --keep"),
        ({"weights_only": True, "derived": "http://host:1/v1"}, "a server doesn't show them"),
        ({"prompts": ("harmful",), "base": "http://host:1/v1", "derived": "http://host:1/v1"}, "name them with --engine-model"),
        ({"prompts": ("harmful",), "engine": "http://host:1/v1"}, "name them with --engine-model"),
        ({"prompts": ("harmful",), "settle": True, "derived": "http://host:1/v1"}, "--settle"),
    ],
)
def test_what_can_t_be_compared_is_said_at_once(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        CompareConfig(**{"base": "a", "derived": "b", **given}).side("derived")


def test_each_side_is_an_audit_with_the_same_settings() -> None:
    config = CompareConfig(
        base="a", derived="http://h:1/v1", derived_engine_model="x", prompts=("p",), keep=("k",), limit=7, dtype="float16"
    )
    base, derived = config.side("base"), config.side("derived")
    assert (base.model, derived.model, derived.engine_model, base.engine_model) == ("a", "http://h:1/v1", "x", None)
    assert base.prompts == derived.prompts == ("p", "k") and base.limit == 7 and base.dtype == "float16"
