"""The command that judges directions, and runs that keep something, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from abliterate.choice.candidates import BY_EFFECT
from abliterate.cli.main import main
from abliterate.config import ESTIMATORS
from abliterate.directions.activations import load_activations
from abliterate.directions.file import load_directions
from abliterate.directions.keys import GroupKey
from abliterate.model.chat.template import load_tokenizer, template_positions
from abliterate.model.edit import load_direction

Tiny = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
WORDS = ["stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror", "harbour", "lantern", "meadow"]


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    """Flags for three sets that name their splits, two categories in the target."""
    flags = []
    for role, start in (("target", "Burn the"), ("baseline", "Draw the"), ("keep", "Steal a"), ("harmless", "Name one")):
        rows = [
            {"text": f"{start} {word} {n}.", "split": split, "category": f"c{n % 2}"}
            for split, numbers in (("train", range(8)), ("val", range(8, 11)), ("test", range(11, 13)))
            for n in numbers
            for word in WORDS[:2]
        ]
        path = tmp_path / f"{role}s.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        flags += [f"--{role}", str(path)]
    return flags


def collected(tiny: Tiny, sets: list[str], out: Path) -> Path:
    assert main(["collect", "--model", str(tiny()), *sets, "--out", str(out)]) == 0
    return out


def test_collect_with_keep_sets_gathers_all_that_a_run_would(tiny: Tiny, sets: list[str], tmp_path: Path) -> None:
    model = tiny()
    out = tmp_path / "a.safetensors"
    assert main(["collect", "--model", str(model), *sets, "--out", str(out)]) == 0
    found = load_activations(out)
    positions = len(template_positions(load_tokenizer(model))) + 1
    assert found.positions == tuple(range(-1, -positions - 1, -1))
    assert set(map(str, found.train)) == {"target", "baseline", "harmless", "keep", "keep/keeps"}
    assert {str(key): len(v) for key, v in found.val.items()} == {"target": 6, "baseline": 6, "harmless": 6, "keep/keeps": 6}
    assert torch.equal(found.train[GroupKey("keep", keep_set="keeps")].mean, found.train[GroupKey("keep")].mean)
    assert len(found.categories) == 16 and set(found.categories) == {"c0", "c1"}
    with safe_open(out, framework="pt") as file:
        assert {"keep_mean", "keep_last", "keep_second_moment"} <= set(file.keys())


def test_every_estimator_is_judged_and_one_direction_becomes_a_file(tiny: Tiny, sets: list[str], tmp_path: Path, capsys: Capture) -> None:
    file, out = collected(tiny, sets, tmp_path / "a.safetensors"), tmp_path / "r.safetensors"
    capsys.readouterr()
    assert main(["directions", str(file)]) == 0
    shown = capsys.readouterr().out
    for name in ESTIMATORS:
        assert f"\n{name} " in shown and f"\n{name}, scoped " in shown
    assert "cos keeps" in shown and "val prompts" in shown
    ask = ["directions", str(file), "--estimators", "projected", "lda", "--out", str(out), "--estimator", "projected, scoped"]
    assert main(ask) == 0
    shown = capsys.readouterr().out
    assert "lda" in shown and "probe" not in shown and str(out) in shown
    assert load_direction(out).shape == (4, 32)
    assert main(ask) == 2 and "already there" in capsys.readouterr().err
    assert main([*ask[:-3], str(tmp_path / "one"), "--estimator", "lda", "--layer", "1.5"]) == 0
    assert load_direction(tmp_path / "one").shape == (32,)


def test_a_file_of_two_sets_without_val_is_judged_by_halves(tiny: Tiny, tmp_path: Path, capsys: Capture) -> None:
    for name, start in (("x", "Burn the"), ("y", "Draw the")):
        (tmp_path / f"{name}.txt").write_text("".join(f"{start} {word}.\n" for word in WORDS), encoding="utf-8")
    file = collected(tiny, ["--target", str(tmp_path / "x.txt"), "--baseline", str(tmp_path / "y.txt")], tmp_path / "a")
    assert load_file(file).keys() == {f"{role}_{part}" for role in ("target", "baseline") for part in ("mean", "second_moment", "last")}
    capsys.readouterr()
    assert main(["directions", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "halves" in shown and "difference-of-means" in shown and "projected" not in shown


def test_bad_asks_are_one_line(tiny: Tiny, sets: list[str], tmp_path: Path, capsys: Capture) -> None:
    broken = tmp_path / "no.safetensors"
    broken.write_bytes(b"nothing")
    for arguments, match in (
        ([str(tmp_path / "absent")], "no such file"),
        ([str(broken)], "not a readable safetensors file"),
        ([str(broken), "--estimators", "magic"], "unknown estimator 'magic'; known are difference-of-means, projected"),
        ([str(broken), "--out", str(tmp_path / "o")], "go together"),
    ):
        capsys.readouterr()
        assert main(["directions", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and match in error


def test_a_run_that_keeps_something_uses_scoped_directions_and_says_how_good_they_are(
    tiny: Tiny, sets: list[str], tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "run"
    few = ["--max-new-tokens", "2", "--candidates", "2"]
    call = ["run", "--model", str(tiny(says="I won't.")), *sets, *few, "--out", str(out), "--min-share", "0.05"]
    assert main(call) == 0
    assert "projected, scoped: " in capsys.readouterr().err
    directions = load_directions(out / "directions.safetensors")
    assert directions.competing == ["difference-of-means, scoped", "projected, scoped"]
    document = json.loads((out / "directions.json").read_text(encoding="utf-8"))
    assert set(document["estimators"]) == {*directions.competing, "difference-of-means", "projected"}
    assert document["pca"]["keep"].keys() == {"keeps"}
    rows = json.loads((out / "selection.json").read_text(encoding="utf-8"))["candidates"]
    assert {row["estimator"] for row in rows} == {*directions.competing, BY_EFFECT}
    assert main(["directions", str(out)]) == 0
    assert main([*call[:-1], "1.0", "--out", str(tmp_path / "strict")]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("abliterate: ")]
    assert len(error) == 1 and "not separable here" in error[0]
