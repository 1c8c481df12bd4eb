"""The command line: flags, exit codes, one line on stderr, and a quick --help."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from abliterate import __version__
from abliterate.cli.main import app, main
from abliterate.commands import audit as audit_command
from abliterate.commands import score as score_command
from abliterate.config import (
    AuditConfig,
    CollectConfig,
    Config,
    DirectionsConfig,
    EditCommandConfig,
    JudgeConfig,
    PlanConfig,
    RunConfig,
    VerifyConfig,
)
from abliterate.config.messages import flag_of
from abliterate.config.setting import Panel
from abliterate.errors import CheckError, InputError
from abliterate.outcomes.verdict import Verdict

ROOT = Path(__file__).parents[2]
COMMANDS: dict[str, type[Config] | None] = {
    "run": RunConfig,
    "audit": AuditConfig,
    "collect": CollectConfig,
    "directions": DirectionsConfig,
    "edit": EditCommandConfig,
    "verify": VerifyConfig,
    "plan": PlanConfig,
    "score": JudgeConfig,
    "report": JudgeConfig,
}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in an empty folder and restore the environment afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("TRANSFORMERS_VERBOSITY", "TOKENIZERS_PARALLELISM", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, os.environ.get(name, "1" if name.startswith("HF") else "error" if "VERB" in name else "false"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=120)


def refusal(capsys: Capture, *arguments: str) -> str:
    """The single error line of a command that ends with 2."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("abliterate: ")
    return captured.err


def test_help_lists_every_command(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert {info.name or info.callback.__name__ for info in app.registered_commands if info.callback} >= COMMANDS.keys()
    for info in app.registered_commands:
        assert f"\n  {info.name or (info.callback and info.callback.__name__)} " in listed


def test_no_arguments_give_the_help(capsys: Capture) -> None:
    main([])
    bare = capsys.readouterr().out
    main(["--help"])
    assert bare == capsys.readouterr().out != ""


@pytest.mark.parametrize(("name", "config"), [(n, c) for n, c in COMMANDS.items() if c])
def test_every_field_of_the_config_is_a_flag_with_its_default(name: str, config: type[Config], capsys: Capture) -> None:
    assert main([name, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for field, info in config.model_fields.items():
        assert f"{flag_of(field)} " in shown
        assert " ".join(str(info.description).split()[:4]) in shown
    assert "--config" in shown


def test_help_of_verify_names_its_argument_and_what_the_base_is_for(capsys: Capture) -> None:
    assert main(["verify", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "verify [OPTIONS] {DIR}" in shown and "DIR <path> The edited checkpoint, or the run's folder." in shown
    assert "everything outside the edited tensors is unchanged" in shown and "--out" not in shown


def test_help_of_score_names_every_key_that_it_reads_and_writes(capsys: Capture) -> None:
    assert main(["score", "--help"]) == 0
    said = capsys.readouterr().out
    read, written = ("prompt", "response", "facts", "official", "begins_in_thought", "cut"), [each.name for each in fields(Verdict)]
    assert not [name for name in (*read, *written) if name not in said]


def test_defaults_stand_in_the_help(capsys: Capture) -> None:
    main(["run", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for default in ("harmful", "1.0", "auto", "64", "false", "0.05"):
        assert f"[default: {default}]" in shown


def test_the_version_is_printed(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_help_loads_neither_torch_nor_transformers() -> None:
    heavy = ("torch", "transformers", "datasets", "pyarrow", "scipy", "matplotlib", "numpy")
    code = (
        "import sys, runpy\n"
        "sys.argv = ['abliterate', '--help']\n"
        "try: runpy.run_module('abliterate', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert not end.code\n"
        f"print('loaded:', [m for m in {heavy!r} if m in sys.modules])"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "Commands:" in done.stdout
    assert done.stdout.strip().splitlines()[-1] == "loaded: []"


def test_a_bad_flag_ends_the_process_with_2_one_line_and_no_torch() -> None:
    done = python("-X", "importtime", "-m", "abliterate", "run", "--model", "m", "--out", "o", "--strength", "2")
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2 and done.stdout == ""
    assert len(told) == 1 and told[0].startswith("abliterate: --strength 2: ")
    assert not any(line.split("|")[-1].strip() in ("torch", "transformers") for line in done.stderr.splitlines())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("run", "--model", "a/b", "--out", "o", "--target", "censorshp"), "did you mean censorship?"),
        (("run", "--model", "a/b", "--out", "o", "--keep", "my/none.txt"), "my/none.txt: no such file"),
        (("plan", "--model", "nowhere"), "no model 'nowhere'"),
        (("chat", "--model", "smollm2", "--beside", "there"), "there: no config.json in it"),
        (("run", "--model", "a/b", "--out", "there"), "there: not empty and not a run folder"),
        (("collect", "--model", "a/b", "--out", "there"), "there: already there"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_what_is_not_there_is_told_before_torch_is_imported(arguments: tuple[str, ...], named: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.txt").write_text("mine", encoding="utf-8")
    code = f"import sys; from abliterate.cli.main import main; print(main({list(arguments)!r}), 'torch' in sys.modules)"
    done = python("-c", code)
    assert done.stdout.split() == ["2", "False"] and named in done.stderr and done.stderr.count("\n") == 1


def test_of_a_runs_folder_given_as_a_model_the_checkpoint_is_named(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine" / "checkpoint").mkdir(parents=True)
    (tmp_path / "mine" / "run.json").write_text("{}", encoding="utf-8")
    assert "run the same command again to resume" in refusal(capsys, "chat", "--model", "smollm2", "--beside", "mine")
    (tmp_path / "mine" / "checkpoint" / "config.json").write_text("{}", encoding="utf-8")
    for given in (["chat", "--model", "smollm2", "--beside", "mine"], ["plan", "--model", "mine"]):
        assert f"its checkpoint is {Path('mine/checkpoint')}" in refusal(capsys, *given)


def test_the_help_of_a_run_begins_with_what_is_asked_and_says_what_is_needed(capsys: Capture) -> None:
    assert main(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    panels = [line.rstrip(":") for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert panels == list(Panel)
    flags = [line.split()[0] for line in shown.splitlines() if line.startswith("  --")]
    assert flags[:4] == ["--model", "--target", "--keep", "--out"]
    words = " ".join(shown.split())
    assert words.count("[required]") == 2 and "[at least 4]" in words and "[default: 4] [at least 2]" in words


def test_a_reader_that_goes_away_is_no_failed_check() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "abliterate", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), told) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["bogus"], "bogus"),
        (["run"], "--out"),
        (["run", "--out", "o"], "--model"),
        (["run", "--model", "m"], "--out"),
        (["run", "--model", "m", "--out", "o", "--nope"], "--nope"),
        (["run", "--model", "m", "--out", "o", "extra"], "extra"),
        (["run", "--model", "m", "--out", "o", "--strength", "2"], "--strength"),
        (["run", "--model", "m", "--out", "o", "--strength", "high"], "--strength"),
        (["run", "--model", "m", "--out", "o", "--strength", "nan"], "--strength"),
        (["run", "--model", "m", "--out", "o", "--candidates", "1"], "--candidates"),
        (["run", "--model", "m", "--out", "o", "--batch-size", "1.5"], "--batch-size"),
        (["run", "--model", "m", "--out", "o", "--dtype", "float8"], "--dtype"),
        (["run", "--model", "m", "--out", "o", "--target"], "--target"),
        (["run", "--model", "m", "--out", "o", "--config", "none.toml"], "none.toml"),
        (["run", "--model", "m", "--out", "o", "--config", "."], ".: "),
        (["run", "--model", "", "--out", "o"], "--model"),
        (["run", "--model", "nowhere", "--out", "o"], "'nowhere'"),
        (["run", "--model", "~nosuchuser/m", "--out", "o"], "~nosuchuser/m"),
        (["plan", "--model", "nowhere"], "'nowhere'"),
        (["plan", "--model", "m" * 300], "m" * 300),
        (["audit", "--model", "m", "--out", "o"], "--prompts"),
        (["audit", "--model", "m", "--prompts", "--out", "o"], "--prompts"),
        (["edit", "--model", "m", "--out", "o"], "--direction"),
        (["edit", "--model", "m", "--out", "o", "--direction", "d", "--plan", "p"], "--plan"),
        (["edit", "--model", "m", "--out", "o", "--direction", "d", "--norms", "tidy"], "--norms"),
        (["edit", "--model", "m", "--out", "o", "--direction", "d", "--embedding", "cut"], "--embedding"),
        (["edit", "--model", "m", "--out", "o", "--direction", "d", "--as", "gguff"], "--as gguff: not one of checkpoint, adapter"),
        (["edit", "--model", "m", "--out", "o", "--direction", "d", "--as", "checkpoint", "--as-adapter"], "contradicts --as checkpoint"),
        (["verify"], "DIR"),
        (["verify", "nowhere"], "nowhere: no such model folder"),
        (["verify", "a", "b"], "b"),
        (["verify", "a", "--model", "m"], "--model"),
        (["verify", "."], ".: no config.json"),
        (["run", "--model", "a/b", "--out", "o", "--target", "censorshp"], "'censorshp': did you mean censorship?"),
        (["run", "--model", "a/b", "--out", "o", "--target", "../my/missing.txt"], "abliterate: ../my/missing.txt: no such file\n"),
        (["audit", "--model", "a/b", "--out", "o", "--prompts", "my.jsonl"], "abliterate: my.jsonl: no such file\n"),
        (["run", "--model", "a/b", "--out", "o", "--limit", "many"], "--limit many: not a whole number"),
        (["run", "--model", "a/b", "--out", "o", "--tune", "bogus"], "--tune bogus: not one of auto, gradient, search, off"),
        (["score"], "FILE"),
        (["score", "none.jsonl"], "none.jsonl"),
        (["score", "new\nline.jsonl"], "line.jsonl"),
        (["score", "."], "."),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else None,
)
def test_bad_input_ends_with_2_and_one_line_that_names_it(arguments: list[str], named: str, capsys: Capture) -> None:
    assert named in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    ("toml", "named"), [("strenght = 1", "'strenght'"), ('strength = "high"', "--strength"), ("strength =", "not TOML")]
)
def test_a_bad_config_file_ends_with_2_and_one_line(toml: str, named: str, capsys: Capture) -> None:
    Path("s.toml").write_text(toml, encoding="utf-8")
    told = refusal(capsys, "run", "--model", "m", "--out", "o", "--config", "s.toml")
    assert "s.toml: " in told and named in told


def test_the_model_may_be_named_in_the_config_file(capsys: Capture) -> None:
    Path("s.toml").write_text('model = "nowhere"\n', encoding="utf-8")
    assert "'nowhere'" in refusal(capsys, "plan", "--config", "s.toml")


def test_a_bad_prompt_set_ends_with_2_before_anything_is_written(tiny: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    model = tiny()
    capsys.readouterr()
    assert "'nosuchset'" in refusal(capsys, "audit", "--model", str(model), "--prompts", "harmful", "nosuchset", "--out", "o")
    assert not (tmp_path / "o").exists()


def test_the_values_of_a_spread_flag_reach_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[AuditConfig] = []
    monkeypatch.setattr(audit_command, "audit", lambda config, out: seen.append(config) or (_ for _ in ()).throw(InputError("seen")))
    given = ["--prompts", "harmful", "harmless", "--model", "a/b", "--limit", "3", "--trust-remote-code", "--out", "o"]
    assert main(["audit", *given]) == 2
    assert seen == [AuditConfig(model="a/b", prompts=("harmful", "harmless"), limit=3, trust_remote_code=True)]


@pytest.mark.parametrize(
    ("error", "code", "named"),
    [
        (InputError("no such thing"), 2, "no such thing"),
        (CheckError("does not hold"), 1, "does not hold"),
        (KeyboardInterrupt(), 130, "run the same command again to resume"),
        (OSError(errno.ENOSPC, "No space left on device", "big.bin"), 2, "big.bin"),
        (PermissionError(errno.EACCES, "Permission denied", "locked"), 2, "locked: Permission denied"),
        (InputError("two\nlines"), 2, "lines"),
    ],
    ids=["input", "check", "interrupt", "no-space", "permission", "two-lines"],
)
def test_each_way_to_end_has_its_code_and_one_line(
    error: BaseException, code: int, named: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def ends(_: Path, config: JudgeConfig) -> None:
        raise error

    monkeypatch.setattr(score_command, "score", ends)
    assert main(["score", "f.jsonl"]) == code
    told = capsys.readouterr().err
    assert named in told and told.startswith("abliterate: ") and told.count("\n") == 1


def test_an_error_of_the_program_itself_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_command, "score", lambda file, config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["score", "f.jsonl"])


def test_scored_lines_go_to_stdout_or_to_the_file(capsysbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    Path("t.jsonl").write_text('{"prompt": "法国首都？", "response": "巴黎。"}\n', encoding="utf-8")
    assert main(["score", "t.jsonl"]) == 0
    shown = capsysbinary.readouterr().out
    assert main(["score", "t.jsonl", "--out", "s.jsonl"]) == 0
    assert Path("s.jsonl").read_bytes() == shown and "巴黎".encode() in shown and b'"outcome"' in shown


def test_scoring_onto_the_input_is_refused_and_leaves_it_whole(capsys: Capture) -> None:
    line = '{"prompt": "q", "response": "r"}\n'
    Path("t.jsonl").write_text(line, encoding="utf-8")
    Path("same.jsonl").symlink_to("t.jsonl")
    for out in ("t.jsonl", "./t.jsonl", "same.jsonl"):
        assert "input itself" in refusal(capsys, "score", "t.jsonl", "--out", out)
    assert Path("t.jsonl").read_text(encoding="utf-8") == line


@pytest.mark.parametrize("out", [".", "t.jsonl/x.jsonl"])
def test_an_out_that_can_not_be_written_is_refused_in_one_line(out: str, capsys: Capture) -> None:
    Path("t.jsonl").write_text('{"prompt": "q", "response": "r"}\n', encoding="utf-8")
    refusal(capsys, "score", "t.jsonl", "--out", out)
