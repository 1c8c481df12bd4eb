"""A run again from its record alone: the same prompts and settings, and each figure beside what it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reports import changed, run_report
from serving import StandIn, running

from abliterate.cli.main import main
from abliterate.commands.report import agreement
from abliterate.config import AuditConfig, CompareConfig, Config, ReproduceConfig, RunConfig
from abliterate.config.recorded import why_not_taken
from abliterate.config.setting import UNKNOWN, setting_of
from abliterate.measures.statistics import wilson
from abliterate.measures.summary import rate
from abliterate.report.likeness import Figure, by_measure, compare, figures, totals, verdict
from abliterate.report.record import not_taken, read_record, settings_of
from abliterate.report.tree.reproduction import Totals

Tiny = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
WORDS = ["stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror", "harbour", "lantern", "meadow"]
ROLES = {"target": "Burn the {}!", "baseline": "Draw the {}.", "keep": "Steal the {}?", "harmless": "Name a {}"}


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, str]:
    for role, pattern in ROLES.items():
        (tmp_path / f"{role}.txt").write_text("\n".join(pattern.format(word) for word in WORDS), encoding="utf-8")
    return {role: str(tmp_path / f"{role}.txt") for role in ROLES}


@pytest.fixture
def audit(tiny: Tiny, sets: dict[str, str], tmp_path: Path) -> Path:
    """The folder of an audit of a tiny model."""
    flags = ["--prompts", sets["target"], sets["keep"], "--max-new-tokens", "8", "--batch-size", "4"]
    assert main(["audit", "--model", str(tiny()), *flags, "--out", str(tmp_path / "audit")]) == 0
    return tmp_path / "audit"


def reproduced(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "reproduction.json").read_text(encoding="utf-8"))
    return found


def refusal(capsys: Capture, *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("abliterate: ")
    return said


def test_a_run_gives_the_same_figures_again(tiny: Tiny, sets: dict[str, str], tmp_path: Path, capsys: Capture) -> None:
    roles = [part for role, path in sets.items() for part in (f"--{role}", path)]
    flags = ["--max-new-tokens", "4", "--batch-size", "4", "--candidates", "2"]
    assert main(["run", "--model", str(tiny(says="I won't.")), *roles, *flags, "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["reproduce", str(tmp_path / "run" / "run.json"), "--out", str(tmp_path / "again")]) == 0
    found, shown = reproduced(tmp_path / "again"), capsys.readouterr().out
    assert found["kind"] == "run" and found["totals"]["identical"] > 100
    assert found["totals"]["within"] == found["totals"]["different"] == 0
    assert all(changed == {} for changed in found["differences"].values())
    assert f"figures: {found['totals']['identical']} identical, 0 within their intervals, 0 different" in shown
    assert {(row["set"], row["measure"]) for row in found["by_measure"]} >= {("target", "withheld"), ("keep", "paired"), ("", "selection")}
    assert (tmp_path / "again" / "checkpoint" / "abliteration.json").is_file()


def test_a_comparison_gives_the_same_figures_again(tiny: Tiny, sets: dict[str, str], tmp_path: Path) -> None:
    pair = ["--base", str(tiny(seed=0)), "--derived", str(tiny(seed=1))]
    flags = ["--prompts", sets["target"], "--keep", sets["keep"], "--limit", "4", "--max-new-tokens", "4"]
    assert main(["compare", *pair, *flags, "--out", str(tmp_path / "compared")]) == 0
    assert main(["reproduce", str(tmp_path / "compared"), "--out", str(tmp_path / "again")]) == 0
    found = reproduced(tmp_path / "again")
    assert found["kind"] == "compare" and found["totals"]["different"] == found["totals"]["within"] == 0
    assert {"weights", "kl_first_token"} <= {row["measure"] for row in found["by_measure"]}


def test_the_same_call_again_computes_nothing_anew(audit: Path, tmp_path: Path) -> None:
    call = ["reproduce", str(audit / "report.json"), "--out", str(tmp_path / "again")]
    assert main(call) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "again" / "transcripts").iterdir()}
    found = reproduced(tmp_path / "again")
    assert main(call) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "again" / "transcripts").iterdir()} == before
    assert reproduced(tmp_path / "again") == found


def test_other_weights_are_named_and_their_figures_are_different(tiny: Tiny, audit: Path, tmp_path: Path, capsys: Capture) -> None:
    report = json.loads((audit / "report.json").read_text(encoding="utf-8"))
    n = report["sets"]["target"]["n"]
    for figure in ("refused", "withheld"):  # as if the model had refused everything
        report["sets"]["target"]["base"][figure] |= rate(n, n).document()
    (audit / "report.json").write_text(json.dumps(report))
    other = tiny(seed=5)
    capsys.readouterr()
    assert main(["reproduce", str(audit), "--model", str(other), "--out", str(tmp_path / "again")]) == 1
    captured = capsys.readouterr()
    found = reproduced(tmp_path / "again")
    assert list(found["differences"]["model_hashes"]) == ["model.safetensors"] and "model hashes: model.safetensors was" in captured.out
    assert found["differences"]["settings"]["model"][1] == str(other)
    assert f"different: sets › target › base › refused was 1 [{wilson(n, n)[0]:.3g}, 1], is 0" in captured.out
    assert "not reproduced" in captured.err.splitlines()[-1]


def test_a_model_that_was_moved_is_the_same_model(tiny: Tiny, audit: Path, tmp_path: Path) -> None:
    model = Path(json.loads((audit / "run.json").read_text(encoding="utf-8"))["model_path"])
    shutil.move(model, tmp_path / "elsewhere")
    assert main(["reproduce", str(audit), "--model", str(tmp_path / "elsewhere"), "--out", str(tmp_path / "again")]) == 0
    differences = reproduced(tmp_path / "again")["differences"]
    assert list(differences["settings"]) == ["model"] and differences["model_hashes"] == {}


def test_other_versions_are_listed(audit: Path, tmp_path: Path, capsys: Capture) -> None:
    record = json.loads((audit / "run.json").read_text(encoding="utf-8"))
    record["versions"]["torch"], record["abliterate"] = "1.0", "0.0.1"
    (audit / "run.json").write_text(json.dumps(record))
    assert main(["reproduce", str(audit), "--out", str(tmp_path / "again")]) == 0
    shown = capsys.readouterr().out
    assert "versions: torch was 1.0, is " in shown and "versions: abliterate was 0.0.1, is " in shown


def test_other_prompts_are_refused_before_anything_is_asked(audit: Path, sets: dict[str, str], tmp_path: Path, capsys: Capture) -> None:
    with Path(sets["keep"]).open("a", encoding="utf-8") as file:
        file.write("\nOne more?")
    assert "keep: its prompts are not those of" in refusal(capsys, "reproduce", str(audit), "--out", str(tmp_path / "again"))
    Path(sets["keep"]).unlink()
    assert "keep.txt" in refusal(capsys, "reproduce", str(audit), "--out", str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()


def test_what_can_not_be_run_again_is_one_line(audit: Path, tmp_path: Path, capsys: Capture) -> None:
    out = ["--out", str(tmp_path / "again")]
    assert "is the recorded run itself" in refusal(capsys, "reproduce", str(audit), "--out", str(audit))
    assert "no such file" in refusal(capsys, "reproduce", str(tmp_path / "none"), *out)
    assert "has no such model" in refusal(capsys, "reproduce", str(audit), "--derived", "smollm2", *out)
    (tmp_path / "other.json").write_text("[1]")
    assert "not the run.json or report.json of a run" in refusal(capsys, "reproduce", str(tmp_path / "other.json"), *out)
    record = json.loads((audit / "run.json").read_text(encoding="utf-8"))
    record["settings"]["luck"] = 1
    (audit / "run.json").write_text(json.dumps(record))
    assert "the setting 'luck' is not accepted" in refusal(capsys, "reproduce", str(audit), *out)
    report = json.loads((audit / "report.json").read_text(encoding="utf-8"))
    (audit / "report.json").write_text(json.dumps({**report, "judge": agreement("chat:x", []).document()}))
    assert "by chat:x" in refusal(capsys, "reproduce", str(audit), *out)
    (audit / "report.json").unlink()
    assert "the run did not finish" in refusal(capsys, "reproduce", str(audit), *out)


def test_a_model_from_the_hub_is_taken_at_the_commit_it_had(audit: Path) -> None:
    record = json.loads((audit / "run.json").read_text(encoding="utf-8"))
    record |= {"hub_id": "owner/name", "revision": "abc123"}
    record["settings"]["model"] = "owner/name"
    (audit / "run.json").write_text(json.dumps(record))
    settings = settings_of(read_record(audit), ReproduceConfig())
    assert (settings.model, settings.revision) == ("owner/name", "abc123")  # type: ignore[union-attr]


def told(audit: Path, **settings: Any) -> None:
    """Let the record say so, as a stranger may."""
    record = json.loads((audit / "run.json").read_text(encoding="utf-8"))
    record["settings"] |= settings
    (audit / "run.json").write_text(json.dumps(record))


def test_every_setting_that_a_record_can_hold_is_taken_from_it_or_told_on_the_command_line() -> None:
    """A new field must say which: a stranger must not run code, reach a server or write to a place."""
    fields = {name: setting_of(info) for config in (RunConfig, AuditConfig, CompareConfig) for name, info in config.model_fields.items()}
    risky = {name for name, known in fields.items() if known.risk != UNKNOWN}
    assert risky == {name for name, known in fields.items() if not known.from_record}
    assert risky <= ReproduceConfig.model_fields.keys()
    assert {"trust_remote_code", "engine", "edited_engine", "study", "layout", "lm_eval"} <= risky


@pytest.mark.parametrize("kind", [RunConfig, AuditConfig, CompareConfig])
def test_no_setting_of_a_record_names_a_server(kind: type[Config]) -> None:
    for name in kind.model_fields:
        assert why_not_taken(name, "http://evil.example/v1") and why_not_taken(name, ["harmful", "https://evil.example/v1"])


def test_a_setting_that_nobody_knows_is_not_taken() -> None:
    assert why_not_taken("brand_new", 1) == UNKNOWN == "its effect is unknown"


def test_a_strangers_record_reaches_no_server_and_runs_no_code(audit: Path, tmp_path: Path, capsys: Capture) -> None:
    """With the reader's keys in the environment."""
    with running(StandIn()) as server:
        told(audit, engine=server.url, trust_remote_code=True, layout="/etc/hostname", lm_eval=["/tmp/evil.yaml"])
        capsys.readouterr()
        main(["reproduce", str(audit), "--out", str(tmp_path / "again")])
        assert server.asked == []
    said = capsys.readouterr().err
    for flag in ("--engine", "--trust-remote-code", "--layout", "--lm-eval"):
        [line] = [line for line in said.splitlines() if f"run.json: {flag} " in line]
        assert "is not taken from a record" in line and line.endswith(f"give {flag} yourself to use it")
    again = json.loads((tmp_path / "again" / "run.json").read_text(encoding="utf-8"))["settings"]
    assert (again["engine"], again["trust_remote_code"], again["layout"], again["lm_eval"]) == ("transformers", False, None, [])


def test_what_is_not_taken_is_taken_from_the_flag(audit: Path) -> None:
    record = read_record(audit)
    given = ReproduceConfig(engine="vllm", trust_remote_code=True, layout="own.toml", lm_eval=("mmlu",))
    settings = settings_of(record, given)
    assert isinstance(settings, AuditConfig)
    assert (settings.engine, settings.trust_remote_code, settings.layout, settings.lm_eval) == ("vllm", True, "own.toml", ("mmlu",))
    assert not_taken(record, given) == {}


def test_a_model_that_a_record_has_on_a_server_must_be_given(audit: Path, tmp_path: Path, capsys: Capture) -> None:
    with running(StandIn()) as server:
        told(audit, model=server.url)
        line = refusal(capsys, "reproduce", str(audit), "--out", str(tmp_path / "again"))
        assert "is not taken from a record" in line and "give --model yourself" in line
        assert server.asked == []
    assert settings_of(read_record(audit), ReproduceConfig(model="http://localhost:1/v1")).model == "http://localhost:1/v1"  # type: ignore[union-attr]


def test_a_setting_that_the_kind_of_run_has_not_is_refused(audit: Path, tmp_path: Path, capsys: Capture) -> None:
    line = refusal(capsys, "reproduce", str(audit), "--study", "s.log", "--out", str(tmp_path / "again"))
    assert "--study" in line and "was made by the command audit, which has no such setting" in line


@pytest.mark.parametrize(
    "damage",
    [
        {"derived": "x"},
        {"reference": [1]},
        {"versions": [1]},
        {"model_hashes": "x"},
        {"resolved": 1},
        {"model_path": 5},
        {"prompts": {"target": None}},
        {"prompts": {"target": {"sha256": 5}}},
    ],
    ids=json.dumps,
)
def test_a_record_of_another_shape_is_one_line(damage: dict[str, Any], audit: Path, tmp_path: Path, capsys: Capture) -> None:
    record = json.loads((audit / "run.json").read_text(encoding="utf-8")) | damage
    (audit / "run.json").write_text(json.dumps(record))
    assert "not the run.json or report.json of a run" in refusal(capsys, "reproduce", str(audit), "--out", str(tmp_path / "again"))


def test_a_report_whose_figures_can_not_be_read_is_known_before_anything_is_run(audit: Path, tmp_path: Path, capsys: Capture) -> None:
    report = json.loads((audit / "report.json").read_text(encoding="utf-8"))
    report["sets"]["target"]["base"]["refused"]["ci95"] = ["low", "high"]
    (audit / "report.json").write_text(json.dumps(report))
    line = refusal(capsys, "reproduce", str(audit), "--out", str(tmp_path / "again"))
    assert "sets.target.base.refused.ci95" in line and not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (Figure(0.5, (0.3, 0.7)), Figure(0.5, (0.3, 0.7)), "identical"),
        (Figure(0.5, (0.3, 0.7)), Figure(0.7, (0.5, 0.9)), "within"),
        (Figure(0.5, (0.3, 0.7)), Figure(0.71, (0.5, 0.9)), "different"),
        (Figure(5, wilson(5, 10), 10), Figure(6, wilson(6, 10), 10), "within"),
        (Figure(0, wilson(0, 10), 10), Figure(9, wilson(9, 10), 10), "different"),
        (Figure(0.1), Figure(0.1005), "within"),
        (Figure(0.1), Figure(0.12), "different"),
        (Figure(1e-8), Figure(3e-7), "within"),
        (Figure(7), Figure(8), "different"),
        (Figure(True), Figure(1), "different"),
        (Figure("a"), Figure("b"), "different"),
        (Figure(None), Figure(None), "identical"),
        (Figure(0.2, (0.1, 0.3)), Figure(None), "different"),
        (Figure(0.2), None, "different"),
    ],
)
def test_a_figure_is_identical_within_or_different(before: Figure, now: Figure | None, said: str) -> None:
    assert verdict(before, now) == said


def test_counts_that_come_from_samples_are_compared_by_their_intervals() -> None:
    side = {"answers": 10, "with_claims": 8, "clusters": 4, "warning": None}
    score = {"auc": 0.7, "auc_ci95": [0.6, 0.8], "true": 6, "others": 14, "clusters": 4, "warning": None}
    said = {
        "samples": 3, "temperature": 1.0, "seed": 0, "sets": {"hot": {"base": side, "edited": side}},
        "validation": {"sets": ["cold"], "claims": score}, "worth": {"used": True, "why": "so", "changed": {"hot": 5}}, "prompts": [],
    }  # fmt: skip
    report = changed(run_report().report, {"consistency": said})
    found = figures(report)
    assert found["consistency", "sets", "hot", "base", "answers"] == Figure(10, wilson(10, 12), 12)
    assert found["consistency", "sets", "hot", "edited", "with_claims"] == Figure(8, wilson(8, 12), 12)
    assert found["consistency", "validation", "claims", "true"] == Figure(6, wilson(6, 20), 20)
    assert found["consistency", "worth", "changed", "hot"] == Figure(5, wilson(5, 24), 24)
    assert found["consistency", "samples"] == Figure(3) and found["consistency", "worth", "used"] == Figure(True)
    one_more = {"consistency.sets.hot.base.answers": 11, "consistency.worth.changed.hot": 6}
    seen = {row.path: row.verdict for row in compare(report, changed(report, one_more))}
    assert {verdict for path, verdict in seen.items() if path[0] == "consistency"} == {"identical", "within"}


def test_every_rate_of_a_report_is_compared_once_under_its_set_and_measure() -> None:
    report = run_report().report
    found, hot = figures(report), report.sets["hot"]
    assert found["sets", "hot", "base", "refused"] == Figure(hot.base.refused.rate, hot.base.refused.ci95)
    refused = hot.languages["en"].base.outcomes.refused
    assert found["sets", "hot", "by_lang", "en", "base", "outcomes", "refused"] == Figure(refused, wilson(refused, 6), 6)
    assert hot.paired and found["sets", "hot", "paired", "refused", "base_only"] == Figure(9, wilson(9, 12), 12)
    assert report.against_control and report.drift and report.drift.kl_first_token_ci95
    contrast = report.against_control[0].base
    assert found["against_control", "hot/cold", "base", "difference"] == Figure(contrast.difference, contrast.ci95)
    assert found["drift", "kl_first_token"] == Figure(report.drift.kl_first_token, report.drift.kl_first_token_ci95)
    assert found["keep_tests", "danger/refused", "holds"] == Figure(False)
    assert found["selection", "chosen", "name"] == Figure("difference-of-means, block 1, position -1")
    assert not any({"mcnemar_p", "upper_bound", "ci95", "kl_first_token_ci95", "cost"} & set(path) for path in found)
    compared = compare(report, report)
    assert totals(compared) == Totals(identical=len(found), within=0, different=0)
    of_set = {row.measure for row in by_measure(compared) if row.set == "hot"}
    assert of_set >= {"n", "refused", "withheld", "outcomes", "paired", "against_control", "tables", "by_topic", "recovery"}
    assert {row.measure for row in by_measure(compared) if not row.set} >= {"n", "kl_first_token", "selection", "controls", "edit"}
