"""The JSON Schema of report.json: what run, audit and compare write is valid, and what they never write is not."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from abliterate.cli.main import main
from abliterate.commands.report import Row, agreement
from abliterate.files import write_json
from abliterate.outcomes.verdict import Verdict
from abliterate.replies.transcripts import Transcript
from abliterate.report.schema import generated, report_schema
from abliterate.report.tree.report import Report

Tiny = Callable[..., Path]
DOCS = Path(__file__).parents[2] / "docs" / "report.md"
VALIDATOR = Draft202012Validator(report_schema())


def errors(report: Any) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in VALIDATOR.iter_errors(report)]


def write_set(path: Path, verb: str, **fields: str) -> str:
    """Twelve prompts in two languages and three topics, each with a fact and the id of its pair in another set."""
    rows = [
        {"id": str(i), "text": f"{verb} {i}", "lang": ("en", "zh")[i % 2], "topic": f"t{i % 3}", "facts": ["tea"], "pair": str(i), **fields}
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, str]:
    return {role: write_set(tmp_path / f"{role}.jsonl", f"Request of {role}") for role in ("target", "baseline", "keep", "harmless")}


def report_of(command: str, out: Path, *flags: str) -> dict[str, Any]:
    assert main([command, *flags, "--max-new-tokens", "20", "--batch-size", "8", "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def reports(tiny: Tiny, sets: dict[str, str], tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Reports of a run with every role, an audit, a comparison with its weights and a reference, and comparisons of weights alone."""
    base, other = str(tiny(says="I won't.")), str(tiny(layers=2))
    roles = [part for role, path in sets.items() for part in (f"--{role}", path)]
    run = report_of("run", tmp_path / "run", "--model", base, *roles, "--candidates", "2")
    pair = ["--base", base, "--derived", str(tmp_path / "run" / "checkpoint")]
    return {
        "run": run,
        "audit": report_of("audit", tmp_path / "audit", "--model", base, "--prompts", sets["target"], sets["baseline"]),
        "compare": report_of(
            "compare", tmp_path / "compare", *pair, "--prompts", sets["target"], "--keep", sets["keep"], "--limit", "6", "--reference", base
        ),
        "weights": report_of("compare", tmp_path / "weights", *pair, "--weights-only"),
        "apart": report_of("compare", tmp_path / "apart", "--base", base, "--derived", other, "--weights-only"),
    }


def test_the_schema_is_one_and_the_models_own() -> None:
    Draft202012Validator.check_schema(report_schema())
    assert report_schema() == generated(), "run scripts/write_schema"


def test_a_report_is_read_and_written_again_byte_for_byte(reports: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    for name in reports:
        file = tmp_path / name / "report.json"
        write_json(Report.read(file), tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == file.read_bytes(), name
    assert {name: Report.read(tmp_path / name / "report.json").run.kind for name in ("run", "audit", "compare")} == {
        name: name for name in ("run", "audit", "compare")
    }


def test_what_run_audit_and_compare_write_is_valid_and_what_they_would_not_is_not(reports: dict[str, dict[str, Any]]) -> None:
    assert {name: found for name, report in reports.items() if (found := errors(report))} == {}
    assert reports["run"]["against_control"] and reports["run"]["sets"]["target"]["by_lang"]  # the reports have these parts
    assert reports["compare"]["weights"]["layers"] and reports["run"]["controls"] and reports["compare"]["recovery"]
    wrongs: list[Callable[[dict[str, Any]], object]] = [
        lambda r: r.pop("not_measured"),
        lambda r: r.update(more=1),
        lambda r: r["sets"]["target"].pop("n"),
        lambda r: r["sets"]["target"]["base"]["refused"].update(k=-1),
        lambda r: r["sets"]["target"]["base"]["refused"].update(rate="half"),
        lambda r: r["sets"]["target"]["base"]["outcomes"].update(dodged=1),
        lambda r: r["sets"]["target"]["by_lang"]["en"]["base"].pop("degenerate"),
        lambda r: r["drift"].update(kl_first_token_ci95=[0.1]),
        lambda r: r["keep_test"].update(holds="yes"),
        lambda r: r["selection"].update(luck=1),
        lambda r: r["run"]["model_hashes"].update({"config.json": "abc"}),
        lambda r: r.update(schema="abliterate/report/2"),
    ]
    for number, wrong in enumerate(wrongs):
        broken = copy.deepcopy(reports["run"])
        wrong(broken)
        assert errors(broken), number
        with pytest.raises(ValidationError):
            Report.model_validate_json(json.dumps(broken))


def test_a_report_under_another_judge_is_valid(tiny: Tiny, sets: dict[str, str], tmp_path: Path) -> None:
    report = report_of("audit", tmp_path / "audit", "--model", str(tiny()), "--prompts", sets["target"])
    said = Transcript("target", "0", "q", "I can't.")
    rows = [Row("base", said, said.verdict(), Verdict("answered", "j")), Row("base", said, said.verdict(), None)]
    assert errors({**report, "judge": agreement("judge", rows).document()}) == []


def documented() -> Iterator[str]:
    """Keys in the first columns of the tables of docs/report.md."""
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            first = line.split("|")[1].replace("… ", "")
            yield from (key for path in re.findall(r"`([^`]+)`", first) for key in path.split(".") if not key.startswith("<"))


def keys_of(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for inner in schema.values():
            yield from keys_of(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from keys_of(inner)


def test_every_key_in_the_documentation_is_in_the_schema() -> None:
    assert sorted(set(documented()) - set(keys_of(report_schema()))) == []


def test_objects_of_ours_take_no_unknown_keys() -> None:
    """The objects that may have other keys are settings, values that depend on the machine, and what tuning adds."""

    def loose(schema: Any, path: str) -> Iterator[str]:
        if isinstance(schema, dict):
            if schema.get("type") == "object" and schema.get("additionalProperties", True) is True:
                yield path
            for key, inner in schema.items():
                yield from loose(inner, f"{path}/{key}" if key not in ("properties", "anyOf", "oneOf", "items", "$defs") else path)
        elif isinstance(schema, list):
            for inner in schema:
                yield from loose(inner, path)

    names = {path.split("/")[-1] for path in loose(report_schema(), "")}
    models = {"CandidateScores", "EngineRecord", "Resolved", "ModelPlace", "Filters", "YardstickRecord", "TuningRecord"}
    assert names <= {"settings", "resolved", *models}
