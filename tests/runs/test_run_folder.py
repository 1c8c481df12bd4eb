"""The run folder: the same settings go on, others are refused by name, and every file is whole or absent."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from reports import run_of

from abliterate.errors import InputError
from abliterate.files import write_json
from abliterate.runs.folder import RunFolder, file_hashes, open_run, peak_rss_bytes, recorded_clock, versions

SETTINGS = {"model": "m", "target": ["a"], "max_new_tokens": 64, "limit": None}
RECORD = {
    "model_path": "/models/m",
    "model_hashes": {"model.safetensors": "aa" * 32, "config.json": "bb" * 32},
    "prompts": {"a": {"role": "target", "sha256": "11" * 32, "n": 3}},
}


def begun(out: Path, settings: dict[str, Any] = SETTINGS, record: dict[str, Any] = RECORD) -> RunFolder:
    """A run of these settings, begun or opened again."""
    return open_run(out, run_of({"settings": settings, "versions": versions(), **record}))


def reopened(out: Path, settings: dict[str, Any] | None = None, **record: Any) -> RunFolder:
    """A run begun with SETTINGS and RECORD, opened again with changes."""
    begun(out)
    return begun(out, {**SETTINGS, **(settings or {})}, {**RECORD, **record})


def test_a_new_run_records_what_was_asked(tmp_path: Path) -> None:
    begun(tmp_path / "deep" / "out")
    run = json.loads((tmp_path / "deep" / "out" / "run.json").read_text(encoding="utf-8"))
    assert run["schema"] == "abliterate/run/1" and run["settings"] == SETTINGS
    assert run["model_path"] == "/models/m" and run["versions"] == versions()


def test_the_same_settings_go_on(tmp_path: Path) -> None:
    assert reopened(tmp_path / "out").path == tmp_path / "out"


def test_settings_are_the_same_before_and_after_json(tmp_path: Path) -> None:
    assert reopened(tmp_path / "out", {"target": ("a",)}).path == tmp_path / "out"


def test_a_setting_that_an_older_version_lacked_may_be_off_but_not_on(tmp_path: Path) -> None:
    assert reopened(tmp_path / "out", {"samples": 0, "elicit": False, "study": None}).path == tmp_path / "out"
    with pytest.raises(InputError, match="another --samples"):
        reopened(tmp_path / "out", {"samples": 3})


@pytest.mark.parametrize(
    ("settings", "flag"),
    [({"max_new_tokens": 32}, "--max-new-tokens (64, now 32)"), ({"limit": 5}, "--limit (null, now 5)"), ({"model": "n"}, "--model")],
)
def test_another_setting_is_refused_by_its_name(tmp_path: Path, settings: dict[str, Any], flag: str) -> None:
    with pytest.raises(InputError) as raised:
        reopened(tmp_path / "out", settings)
    assert flag in str(raised.value) and "\n" not in str(raised.value)


def test_a_setting_that_is_gone_is_refused_by_its_name(tmp_path: Path) -> None:
    begun(tmp_path / "out", {**SETTINGS, "margin": 0.05})
    with pytest.raises(InputError, match="--margin"):
        begun(tmp_path / "out")


def test_changed_prompts_are_refused_by_their_sets_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prompts 'a'"):
        reopened(tmp_path / "out", prompts={"a": {**RECORD["prompts"]["a"], "sha256": "22" * 32}})


def test_other_weights_are_refused_by_their_files_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model hashes 'model\.safetensors'"):
        reopened(tmp_path / "out", model_hashes={**RECORD["model_hashes"], "model.safetensors": "cc" * 32})


def test_a_refused_run_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    begun(out)
    before = (out / "run.json").read_bytes()
    with pytest.raises(InputError):
        begun(out, {**SETTINGS, "limit": 5})
    assert (out / "run.json").read_bytes() == before and [p.name for p in out.iterdir()] == ["run.json"]


def test_a_long_setting_is_shortened_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        reopened(tmp_path / "out", {"model": "x" * 5000})
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_not_a_run_folder_is_refused(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    else:
        out.write_text("mine")
    with pytest.raises(InputError, match="not empty and not a run folder"):
        begun(out)


@pytest.mark.parametrize("content", ["{", "", "[]", "7", '{"schema": "other/1"}', '{"settings": 3}', '{"settings": null}'])
def test_a_run_json_of_something_else_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json|not a run folder") as raised:
        begun(tmp_path)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "run.json").read_text() == content


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert begun(tmp_path).path == tmp_path


def test_a_run_killed_while_it_wrote_run_json_can_be_begun_again(tmp_path: Path) -> None:
    (tmp_path / ".run.json.partial").write_text('{"schema": "abli')
    assert begun(tmp_path).path == tmp_path


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def forbidden() -> dict[str, int]:
    raise AssertionError("the stage was done already")


def test_a_stage_is_made_once_and_read_back_after(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.stage("one", "one.json", lambda: {"a": 1}, write_json, load) == {"a": 1}
    assert folder.stage("one", "one.json", forbidden, write_json, load) == {"a": 1}


def test_a_stage_that_fails_leaves_no_result(tmp_path: Path) -> None:
    def fail() -> dict[str, int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RunFolder(tmp_path).stage("one", "one.json", fail, write_json, load)
    assert not (tmp_path / "one.json").exists()


def test_a_save_cut_short_leaves_no_result_and_is_made_again(tmp_path: Path) -> None:
    def half(made: dict[str, int], path: Path) -> None:
        path.write_text('{"a"')
        raise OSError("no space left")

    folder = RunFolder(tmp_path)
    with pytest.raises(OSError, match="no space"):
        folder.stage("one", "one.json", lambda: {"a": 1}, half, load)
    assert not (tmp_path / "one.json").exists()
    assert folder.stage("one", "one.json", lambda: {"a": 2}, write_json, load) == {"a": 2}
    assert not [p.name for p in tmp_path.iterdir() if "partial" in p.name]


def test_seconds_add_up_over_interruptions(tmp_path: Path) -> None:
    write_json({"seconds": {"edit": 5.0}, "peak_rss_bytes": 1}, tmp_path / "cost.json")
    folder = RunFolder(tmp_path)
    for name in ("edit", "drift"):
        with folder.timed(name):
            pass
    cost = folder.cost()
    assert list(cost.seconds) == ["edit", "drift"] and cost.seconds["edit"] >= 5.0
    assert cost.peak_rss_bytes > 1_000_000


def test_the_seconds_of_an_interrupted_stage_are_counted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt), folder.timed("transcripts"):
        raise KeyboardInterrupt
    assert "transcripts" in folder.cost().seconds


def test_the_peak_is_in_bytes() -> None:
    assert 10_000_000 < peak_rss_bytes() < 10**13


def test_hashes_follow_the_bytes_of_the_models_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "notes.md").write_text("mine")
    before = file_hashes(tmp_path)
    (tmp_path / "config.json").write_text("{ }")
    after = file_hashes(tmp_path)
    assert set(before) == {"config.json", "empty.txt"}
    assert before["config.json"] != after["config.json"] and before["empty.txt"] == after["empty.txt"]


@pytest.mark.parametrize(
    ("record", "clock"),
    [
        ({}, None),
        ({"resolved": {"clock": None}, "derived": {"model_path": None, "resolved": {"seeds": {}}}}, None),
        ({"resolved": {"clock": "2001-02-03T04:05:06"}}, datetime(2001, 2, 3, 4, 5, 6)),
        (
            {"resolved": {"clock": None}, "derived": {"model_path": None, "resolved": {"seeds": {}, "clock": "2001-02-03T04:05:06"}}},
            datetime(2001, 2, 3, 4, 5, 6),
        ),
        ({"derived": {"model_path": None}}, None),
    ],
)
def test_the_time_that_prompts_show_is_read_from_the_record_of_either_model(
    tmp_path: Path, record: dict[str, Any], clock: datetime | None
) -> None:
    assert recorded_clock(tmp_path / "out") is None
    begun(tmp_path / "out", SETTINGS, {**RECORD, **record})
    assert recorded_clock(tmp_path / "out") == clock


def test_a_record_made_before_clocks_were_noted_gets_one_where_a_template_reads_it(tmp_path: Path) -> None:
    def known(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
        return {**RECORD, "resolved": {"seeds": {}, **first}, "derived": {"resolved": {"seeds": {}, **second}, "model_path": None}}

    old, time = known({}, {}), {"clock": "2001-02-03T04:05:06"}
    begun(tmp_path / "out", SETTINGS, old)
    before = (tmp_path / "out" / "run.json").read_bytes()
    begun(tmp_path / "out", SETTINGS, known({"clock": None}, {"clock": None}))
    assert (tmp_path / "out" / "run.json").read_bytes() == before
    folder = begun(tmp_path / "out", SETTINGS, known({"clock": None}, time))
    assert folder.record() == run_of({"settings": SETTINGS, "versions": versions(), **known({}, time)})
    begun(tmp_path / "out", SETTINGS, known({"clock": None}, {"clock": "2031-02-03T04:05:06"}))
    assert folder.record() == run_of({"settings": SETTINGS, "versions": versions(), **known({}, time)})
