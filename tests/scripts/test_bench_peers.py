"""This program beside its peers: what each is given, what is read of Heretic, and how models are set side by side."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import save_tiny

SCRIPTS = Path(__file__).parents[2] / "scripts"
NEW = ("bench_peers", "bench_peers_table", "bench_heretic")


@pytest.fixture(scope="module")
def peers() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPTS))
    try:
        import bench_peers

        yield bench_peers
    finally:
        sys.path.remove(str(SCRIPTS))
        for name in NEW:
            sys.modules.pop(name, None)


def task_of(peers: ModuleType, folder: Path, work: Path, **settings: Any) -> Any:
    given = {"target": ("harmful",), "keep": ("censorship",), "limit": 6, "tokens": 3, "threads": 1, "seed": 0, **settings}
    return peers.Task(folder=folder, work=work, **given)


def trial(index: int, refusals: int, kl: float) -> dict[str, Any]:
    return {"index": index, "refusals": refusals, "kl_divergence": kl, "n_bad_prompts": 48}


# --- Heretic ---


def test_the_front_holds_what_no_other_trial_beats(peers: ModuleType) -> None:
    trials = [trial(1, 22, 0.07), trial(2, 3, 0.2), trial(3, 3, 0.16), trial(4, 30, 0.07), trial(5, 10, 0.1), trial(6, 12, 0.12)]
    assert [t["index"] for t in peers.front(trials)] == [3, 5, 1]


def test_the_knee_lies_farthest_below_the_line_between_the_ends(peers: ModuleType) -> None:
    ends = [trial(1, 0, 0.5), trial(2, 2, 0.45), trial(3, 4, 0.1), trial(4, 20, 0.05), trial(5, 40, 0.0)]
    found = peers.points(ends)
    assert {name: t["index"] for name, t in found.items()} == {"fewest refusals": 1, "lowest KL": 5, "knee": 3}
    assert list(peers.points(ends[:2])) == ["fewest refusals", "lowest KL"] and len(peers.points(ends[:1])) == 1


def test_heretic_is_given_train_and_val_prompts_alone(peers: ModuleType, tmp_path: Path) -> None:
    from abliterate.prompts import load_set

    given = task_of(peers, tmp_path, tmp_path, limit=None).prompts()
    assert {name: len(texts) for name, texts in given.items()} == {
        "bad_prompts": 192,
        "good_prompts": 192,
        "bad_evaluation_prompts": 48,
        "good_evaluation_prompts": 48,
    }
    tested = {" ".join(p.text.split()) for name in ("harmful", "harmless") for p in load_set(name).of("test")}
    assert not tested & {text for texts in given.values() for text in texts}


def test_heretic_keeps_its_defaults_but_for_prompts_and_size(peers: ModuleType, tmp_path: Path) -> None:
    task = task_of(peers, tmp_path / 'a "model"', tmp_path)
    config = tomllib.loads(peers.heretic_config(task, tmp_path, 24, {"refusal_markers": ["抱歉", "can't"]}))
    prompts = {name: config.pop(name) for name in task.prompts()}
    assert config == {
        "model": str(tmp_path / 'a "model"'),
        "n_trials": 24,
        "max_response_length": 3,
        "seed": 0,
        "export_strategy": "merge",
        "refusal_markers": ["抱歉", "can't"],
    }
    for name, texts in task.prompts().items():
        assert Path(prompts[name]["dataset"]).read_text().splitlines() == texts


HERETIC = """
import json, sys
from pathlib import Path

class Trial:
    def __init__(self, index): self.user_attrs = {"index": index}

class Choice:
    def __init__(self, value): self.value = value

def prompt_select(message, choices): raise EOFError
def prompt_path(message): raise EOFError

def main():
    assert sys.argv == ["heretic"]
    assert prompt_select("How would you like to proceed?", [Choice("continue"), Choice("restart")]) == "continue"
    while (trial := prompt_select("Which trial do you want to use?", [*(Choice(Trial(i)) for i in (4, 7)), Choice("continue")])) != "":
        while prompt_select("What do you want to do with the decensored model?", []) != "":
            folder = Path(prompt_path("Path to the folder:"))
            folder.mkdir()
            if trial.user_attrs["index"] == 7:
                (folder / "model.safetensors").touch()
    if Path("more").exists():
        prompt_select("Which way now?", [])
"""


@pytest.fixture
def driven(tmp_path: Path) -> Any:
    """The driver with something in Heretic's place that asks as Heretic asks."""
    package = tmp_path / "packages" / "heretic"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "main.py").write_text(HERETIC)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(package.parent)}
        command = [sys.executable, str(SCRIPTS / "bench_heretic.py"), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    return run


def test_heretics_questions_are_answered_without_a_terminal(driven: Any, tmp_path: Path) -> None:
    assert driven("study").returncode == 0
    done = driven("save", json.dumps({"7": str(tmp_path / "seven")}))
    assert done.returncode == 0 and (tmp_path / "seven" / "model.safetensors").exists(), done.stderr


@pytest.mark.parametrize(("number", "why"), [("4", "has not saved"), ("5", "doesn't offer trial 5")])
def test_a_model_that_heretic_does_not_give_is_an_error(number: str, why: str, driven: Any, tmp_path: Path) -> None:
    done = driven("save", json.dumps({number: str(tmp_path / "model")}))
    assert done.returncode != 0 and why in done.stderr.splitlines()[-1]


def test_a_question_that_nobody_knows_is_an_error(driven: Any, tmp_path: Path) -> None:
    (tmp_path / "more").touch()
    done = driven("study")
    assert done.returncode != 0 and "Which way now?" in done.stderr.splitlines()[-1]


# --- procedures of others ---


def single(name: str, bypass: float, kl: float, induce: float = 1.0, **more: str) -> dict[str, Any]:
    return {"name": name, "kind": "single", "estimator": "difference-of-means", "bypass": bypass, "kl": kl, "induce": induce, **more}


def test_the_single_direction_is_chosen_by_the_published_rule(peers: ModuleType) -> None:
    rows = [
        single("far", -9.0, 0.5),
        single("good", -3.0, 0.05),
        single("weak", -1.0, 0.01),
        single("idle", -5.0, 0.02, induce=-0.1),
        single("all blocks", -8.0, 0.02, kind="per-layer"),
        single("other", -8.0, 0.02, estimator="projected"),
    ]
    assert peers.best_single(rows) == (rows[1], [])
    assert peers.best_single(rows[:1]) == (rows[0], ["KL < 0.8"])
    assert peers.best_single(rows[3:]) == (rows[3], ["no direction induces refusals"])
    with pytest.raises(peers.FailedError, match="no single"):
        peers.best_single(rows[4:])


# --- processes and the table ---


def test_a_process_is_measured_and_its_failure_is_one_line(peers: ModuleType, tmp_path: Path) -> None:
    cost = peers.child([sys.executable, "-c", "a = bytearray(10**8)"], tmp_path / "log", 1)
    assert cost["seconds"] > 0 and cost["peak_rss_bytes"] > 10**8
    with pytest.raises(peers.FailedError, match=r"ended with 3: what was wrong \("):
        peers.child([sys.executable, "-c", "print('what was wrong'); raise SystemExit(3)"], tmp_path / "log", 1)


def rate(k: int, n: int) -> dict[str, Any]:
    return {"k": k, "n": n, "rate": k / n, "ci95": [0.0, 1.0]}


def row(name: str, left: int, kl: float) -> dict[str, Any]:
    def entry(before: int, after: int) -> dict[str, Any]:
        return {
            side: {"withheld": rate(k, 50), "refused": rate(k // 2, 50), "degenerate": rate(1, 50)}
            for side, k in (("base", before), ("edited", after))
        }

    return {
        "name": name,
        "cost": {"seconds": 100.0, "peak_rss_bytes": 2e9, "trial_seconds": 40.0, "default_trials_seconds": 8100.0},
        "sets": {"harmful": entry(45, left), "harmless": entry(2, 1), "censorship": entry(40, 39)},
        "keep_tests": [{"set": "censorship", "margin": 0.05, "upper_bound": 0.043, "holds": True}],
        "drift": {"kl_first_token": 2 * kl, "kl_first_token_answered": kl, "kl_sequence": 0.01},
    }


def test_the_table_has_the_base_and_a_line_a_model(peers: ModuleType) -> None:
    rows = [row("ours", 1, 0.05), {"name": "heretic", "failed": "ended with 1: no | memory"}]
    lines = peers.table(["harmful"], ["censorship"], rows)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(line) for line in cells} == {11} and [line[0] for line in cells] == ["way", "---", "base", "ours", "heretic"]
    assert cells[0][1:5] == ["harmful refused (target)", "harmful withheld (target)", "censorship withheld (keep)", "harmless withheld"]
    assert cells[2][1:3] == ["44.0 % (22/50)", "90.0 % (45/50)"] and cells[3][1:4] == ["0.0 % (0/50)", "2.0 % (1/50)", "78.0 % (39/50)"]
    assert cells[3][5:] == ["yes (≤ 4.3)", "2.0 % (3/150)", "0.050 / 0.100", "0.010", "100", "2000"]
    assert cells[4][1] == "failed: ended with 1: no / memory"


@pytest.mark.parametrize(
    ("left", "kl", "said"), [(3, 0.1, "better on both"), (1, 0.05, "no worse on both"), (0, 0.1, "not better"), (3, 0.04, "not better")]
)
def test_two_models_are_compared_on_both_axes(left: int, kl: float, said: str, peers: ModuleType) -> None:
    first, second, seconds = peers.verdicts(["harmful"], [row("ours", 1, 0.05), row("heretic, knee", left, kl)])
    assert said in first and said in second and "81.0 times ours" in seconds
    assert peers.verdicts(["harmful"], [row("ours", 1, 0.05)]) == []


def test_only_known_ways_and_settings_are_taken(peers: ModuleType) -> None:
    assert peers._ways("heretic,ours") == ["heretic", "ours"]
    assert peers._setting("batch_size=8") == ("batch_size", 8) and peers._setting('system_prompt = "x"') == ("system_prompt", "x")
    for wrong in (lambda: peers._ways("others"), lambda: peers._setting("batch_size"), lambda: peers._setting("a=1\nb=2")):
        with pytest.raises(argparse.ArgumentTypeError):
            wrong()


def test_results_of_other_settings_are_not_mixed(peers: ModuleType, tmp_path: Path) -> None:
    args = argparse.Namespace(trials=24, run_flags="", heretic=[("batch_size", 8)], markers=[])
    kept = peers.kept_settings(args, task_of(peers, tmp_path / "model", tmp_path))
    assert peers.kept_settings(args, task_of(peers, tmp_path / "model", tmp_path)) == kept
    with pytest.raises(SystemExit, match=r"another tokens \(3\)"):
        peers.kept_settings(args, task_of(peers, tmp_path / "model", tmp_path, tokens=4))


def test_a_way_that_is_made_is_not_made_again(peers: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "made.json").write_text('{"cost": {"seconds": 1.0}, "models": []}')
    found = peers.made(task_of(peers, tmp_path / "no model", tmp_path), "ours", argparse.Namespace(run_flags=""))
    assert found == {"cost": {"seconds": 1.0}, "models": []}


def test_a_published_procedure_is_run_and_tested(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", layers=2, says="No.")
    call = ["peers", "--model", str(folder), "--only", "refusal_direction", "--limit", "6", "--tokens", "3"]
    call += ["--test-limit", "4", "--test-tokens", "3", "--threads", "1", "--work", str(tmp_path / "work")]

    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run([sys.executable, str(SCRIPTS / "bench.py"), *call], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout
    (row,) = json.loads((tmp_path / "work" / "peers.json").read_text())["rows"]
    assert row["cost"]["seconds"] > 0 and row["drift"]["kl_first_token"] > 0
    assert {name: entry["edited"]["withheld"]["n"] for name, entry in row["sets"].items()} == dict.fromkeys(
        ("harmful", "harmless", "borderline", "censorship"), 4
    )
