"""A judge against labelled responses: the counts are right, and what was measured can be written down."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from abliterate.errors import InputError
from abliterate.measures import detector
from abliterate.outcomes.judges.judge import Rules

SCRIPTS = Path(__file__).parents[2] / "scripts"
ROWS = [
    {"prompt": "p", "response": "I can't help with that.", "outcome": "refused", "lang": "en", "source": "a", "split": "train"},
    {"prompt": "p", "response": "Paris.", "outcome": "refused", "lang": "en", "source": "a", "split": "test"},
    {"prompt": "p", "response": "I can't help with that.", "outcome": "refused", "lang": "en", "source": "b", "split": "test"},
    {"prompt": "p", "response": "Paris.", "outcome": "answered", "lang": "en", "source": "b", "split": "test"},
    {"prompt": "首都？", "response": "对不起，我无法回答这个问题。", "outcome": "answered", "lang": "zh", "source": "b", "split": "test"},
]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_outcomes", SCRIPTS / "bench_outcomes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_outcomes"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    file = tmp_path / "labelled.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def test_figures_are_counted_from_labels_and_verdicts(bench: ModuleType, labelled: Path) -> None:
    found = bench.measured(bench.rows_of(labelled, "test"), Rules())
    assert found["n"] == 4 and found["accuracy"]["k"] == 2
    assert found["confusion"]["refused"] == {**dict.fromkeys(found["confusion"], 0), "refused": 1, "answered": 1}
    assert found["confusion"]["answered"]["refused"] == 1
    assert found["outcomes"]["refused"] == {"n": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert found["outcomes"]["degenerate"] == {"n": 0, "precision": None, "recall": None, "f1": None}
    assert found["macro_f1"] == 0.5 and found["kappa"] == 0.0
    held = found["withheld"]
    assert {name: (held[name]["k"], held[name]["n"]) for name in held} == {"accuracy": (2, 4), "sensitivity": (1, 2), "specificity": (1, 2)}
    assert [found["by_lang"][lang]["n"] for lang in ("en", "zh")] == [3, 1]
    assert [found["by_source"][source]["withheld"]["accuracy"]["k"] for source in ("a", "b")] == [0, 2]


def test_a_row_without_a_verdict_is_wrong_and_in_no_column(bench: ModuleType) -> None:
    found = bench.figures([("refused", None), ("answered", None), ("answered", "answered")])
    assert found["unjudged"] == 2 and found["accuracy"]["k"] == 1 and found["withheld"]["accuracy"]["k"] == 1
    assert (found["withheld"]["specificity"]["k"], found["withheld"]["specificity"]["n"]) == (1, 2)
    assert sum(sum(row.values()) for row in found["confusion"].values()) == 1


@pytest.mark.parametrize(("split", "n"), [("train", 1), ("test", 4), ("all", 5)])
def test_a_split_is_chosen(split: str, n: int, bench: ModuleType, labelled: Path) -> None:
    assert len(bench.rows_of(labelled, split)) == n


@pytest.mark.parametrize(
    "text", ["{oops\n", '{"prompt": "p", "response": "r"}\n', '{"prompt": "p", "response": "r", "outcome": "fine"}\n', ""]
)
def test_a_file_that_is_not_labelled_is_refused(text: str, bench: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"f\.jsonl: "):
        bench.rows_of(tmp_path / "f.jsonl", "test")


def test_writing_puts_the_figures_where_reports_find_them(
    bench: ModuleType, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "FILE", tmp_path / "detector.toml")
    rows = bench.rows_of(labelled, "test")
    monkeypatch.setattr(bench, "natural_rows", lambda: rows)
    monkeypatch.setattr(bench, "canned_rows", lambda: rows[:1])
    bench.write()
    detector._measured.cache_clear()
    try:
        assert detector.detector_of(detector.RULES) == detector.Detector((1, 2), (1, 2))
        assert detector.detector_of(detector.RULES, detector.CANNED) == bench.detector_on(rows[:1])
    finally:
        detector._measured.cache_clear()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPTS.parent), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, str(SCRIPTS / "bench.py"), "outcomes", *arguments], capture_output=True, text=True, env=environment
    )


def test_the_command_prints_tables_and_writes_all_figures(labelled: Path, tmp_path: Path) -> None:
    done = run("--file", str(labelled), "--split", "all", "--json", str(tmp_path / "f.json"))
    assert done.returncode == 0, done.stderr
    assert "refused (3)" in done.stdout and "macro-F1" in done.stdout and "0.600 (3/5" in done.stdout
    assert json.loads((tmp_path / "f.json").read_text())["accuracy"]["k"] == 3


def test_only_the_rules_on_the_test_half_are_written_down(labelled: Path) -> None:
    before = detector.FILE.read_bytes()
    done = run("--file", str(labelled), "--write")
    assert done.returncode == 1 and "--write" in done.stderr and done.stderr.count("\n") == 1
    assert detector.FILE.read_bytes() == before
