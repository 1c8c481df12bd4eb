"""``--elicit`` of audit and compare: what it measures, what it refuses, and that nothing is measured twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import save_tiny

from abliterate.cli.main import main
from abliterate.config import AuditConfig, CompareConfig
from abliterate.errors import InputError
from abliterate.measures.elicitation.likelihoods import FactSequences

SERVER = "http://127.0.0.1:9/v1"
HOSTILE = "<script>alert(1)</script>"
WORDS = ["stone", "river", "cloud", "paper", "candle", "window", HOSTILE, "bridge"]


def write_set(path: Path, topic: str, twin: str) -> str:
    """Eight prompts on four topics in two languages, with two facts each."""
    rows = [
        {
            "id": f"{topic}{i}", "text": f"What is the {topic} of {i}?", "lang": ("en", "zh")[i % 2], "topic": f"{topic} {i // 2}",
            "facts": [WORDS[i], f"{topic} {i} {1950 + i}"], "pair": f"{twin}{i}",
        }
        for i in range(8)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@dataclass(frozen=True)
class Elicited:
    """An audit and a comparison with ``--elicit``; ``flags`` are the audit's."""

    flags: Sequence[str]
    audit: Path
    compare: Path


@pytest.fixture(scope="module")
def elicited(tmp_path_factory: pytest.TempPathFactory) -> Elicited:
    place = tmp_path_factory.mktemp("elicited")
    model, other = save_tiny(place / "model", says="I won't.", positions=4096), save_tiny(place / "other", seed=1, positions=4096)
    sets = [write_set(place / "asked.jsonl", "secret", "plain"), write_set(place / "control.jsonl", "plain", "secret")]
    shared = ["--prompts", sets[0], "--prompts", sets[1], "--split", "all", "--max-new-tokens", "12", "--elicit"]
    flags = ["audit", "--model", str(model), *shared, "--out", str(place / "audit")]
    assert main(flags) == 0
    assert main(["compare", "--base", str(model), "--derived", str(other), *shared, "--out", str(place / "compare")]) == 0
    return Elicited(flags, place / "audit", place / "compare")


def read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8")))


def test_the_report_has_the_aucs_of_each_set_and_what_they_say_of_the_withheld_prompts(elicited: Elicited) -> None:
    report = read(elicited.audit / "report.json")
    found = report["elicitation"]
    assert found["controls"] == ["control"] and found["context"] in ("lead_in", "few_shot", "chat", "combined")
    assert set(found["sets"]) == {"asked", "control"} and found["sets"]["control"]["control"]
    entry = found["sets"]["asked"]
    assert set(entry["base"]["contexts"]) == {"lead_in", "few_shot", "chat", "combined"} and set(entry["by_lang"]) == {"en", "zh"}
    assert entry["base"]["withheld"]["n"] == report["sets"]["asked"]["base"]["withheld"]["k"] == 8
    assert len(entry["topics"]) == 4 and "edited" not in entry and "elicitation" not in report["not_measured"]
    stored = read(elicited.audit / "elicitation.json")
    assert len(stored["prompts"]) == 16 and found["facts"] == sum(len(prompt["facts"]) for prompt in stored["prompts"])


def test_no_false_fact_is_of_the_prompts_own_topic_or_its_twin(elicited: Elicited) -> None:
    for prompt in read(elicited.audit / "elicitation.json")["prompts"]:
        number = int(prompt["id"][-1])
        own = {WORDS[i] for i in range(8) if i // 2 == number // 2}
        for fact in prompt["facts"]:
            assert len(fact["false"]) > 0 and not own & set(fact["false"])


def test_both_models_of_a_comparison_are_asked_the_same_facts(elicited: Elicited) -> None:
    base, edited = (read(elicited.compare / name)["prompts"] for name in ("elicitation.json", "elicitation-edited.json"))
    assert [[fact["false"] for fact in p["facts"]] for p in base] == [[fact["false"] for fact in p["facts"]] for p in edited]
    assert base != edited
    entry = read(elicited.compare / "report.json")["elicitation"]["sets"]["asked"]
    before, after = (entry[side]["contexts"] for side in ("base", "edited"))
    context = read(elicited.compare / "report.json")["elicitation"]["context"]
    assert entry["change"]["difference"] == pytest.approx(after[context]["auc"] - before[context]["auc"])


def test_what_is_measured_is_not_measured_again(elicited: Elicited, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, report = (elicited.audit / "elicitation.json").read_bytes(), read(elicited.audit / "report.json")["elicitation"]

    def again(*given: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(FactSequences, "measured", again)
    assert main(list(elicited.flags)) == 0
    assert (elicited.audit / "elicitation.json").read_bytes() == stored and read(elicited.audit / "report.json")["elicitation"] == report


def test_report_renders_the_same_figures_again_without_a_model(elicited: Elicited) -> None:
    for folder in (elicited.audit, elicited.compare):
        before = read(folder / "report.json")
        assert main(["report", str(folder)]) == 0
        assert read(folder / "report.json")["elicitation"] == before["elicitation"]


def test_terminal_and_page_say_it_and_a_hostile_fact_stays_inert(elicited: Elicited, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(elicited.audit)]) == 0
    assert "which these sets alone chose" in " ".join(capsys.readouterr().out.split())
    page = (elicited.audit / "report.html").read_text(encoding="utf-8")
    assert 'id="elicitation"' in page and HOSTILE not in page


def test_without_the_flag_nothing_is_measured_and_nothing_is_said(tiny: Callable[..., Path], tmp_path: Path) -> None:
    asked = write_set(tmp_path / "asked.jsonl", "secret", "plain")
    flags = ["--prompts", asked, "--split", "all", "--max-new-tokens", "2", "--out", str(tmp_path / "out")]
    assert main(["audit", "--model", str(tiny()), *flags]) == 0
    report = read(tmp_path / "out" / "report.json")
    assert report["elicitation"] is None and "elicitation" in report["not_measured"]
    assert not (tmp_path / "out" / "elicitation.json").exists()
    assert 'id="elicitation"' not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_prompts_without_facts_are_refused_before_anything_is_written(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain.txt").write_text("What is tea?\nWhat is milk?\n", encoding="utf-8")
    flags = ["--prompts", str(tmp_path / "plain.txt"), "--elicit", "--out", str(tmp_path / "out")]
    assert main(["audit", "--model", str(tiny()), *flags]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "no prompt that is asked has facts" in said[0] and not (tmp_path / "out").exists()


def test_facts_of_one_topic_alone_are_refused(tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"What is tea {i}?", "topic": "tea", "facts": [f"leaf {i}"]} for i in range(3)]
    (tmp_path / "tea.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = ["--prompts", str(tmp_path / "tea.jsonl"), "--elicit", "--out", str(tmp_path / "out")]
    assert main(["audit", "--model", str(tiny()), *flags]) == 2
    assert "give prompts of several topics" in capsys.readouterr().err


def test_a_server_is_refused() -> None:
    with pytest.raises(InputError, match="--elicit needs the likelihoods"):
        AuditConfig(model=SERVER, prompts=("censorship",), elicit=True)
    for sides in ({"base": SERVER, "derived": "there"}, {"base": "here", "derived": SERVER}):
        with pytest.raises(InputError, match="--elicit needs the likelihoods"):
            CompareConfig(**sides, prompts=("censorship",), elicit=True)
    with pytest.raises(InputError, match="--weights-only"):
        CompareConfig(base="here", derived="there", weights_only=True, elicit=True)


def test_a_server_is_refused_in_one_line_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--model", SERVER, "--prompts", "censorship", "--elicit", "--out", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
