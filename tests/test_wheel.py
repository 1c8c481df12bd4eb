"""The package as it is installed: a wheel with everything inside that runs outside the checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from abliterate.cli.main import app

Tiny = Callable[..., Path]
ROOT = Path(__file__).parents[1]
LIMIT = 15_000_000
ESCAPE = "\x1b"
WORDS = ["stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror", "harbour", "lantern", "meadow"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as pip builds it."""
    out = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(out)], cwd=ROOT, check=True, capture_output=True, text=True)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel, and what it depends on from the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    with zipfile.ZipFile(wheel) as content:
        content.extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def run(python: Path, at: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m abliterate`` in a folder that is no checkout."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "NO_COLOR", "FORCE_COLOR")}
    call = [str(python), "-m", "abliterate", *arguments]
    return subprocess.run(call, cwd=at, capture_output=True, text=True, timeout=300, env={**clean, "HF_HUB_OFFLINE": "1", **environment})


def test_the_wheel_is_small_and_holds_all_that_is_in_the_package(wheel: Path) -> None:
    assert wheel.stat().st_size < LIMIT
    names = set(zipfile.ZipFile(wheel).namelist())
    ignored = ("__pycache__", ".pyc")
    files = [p for p in (ROOT / "abliterate").rglob("*") if p.is_file() and not any(part in str(p) for part in ignored)]
    assert [str(p.relative_to(ROOT)) for p in files if str(p.relative_to(ROOT)) not in names] == []
    assert {f"abliterate/prompts/bundled/{p.name}" for p in (ROOT / "prompts").iterdir()} <= names
    assert {"abliterate/py.typed", "abliterate/report/schema.json", "abliterate/model/layouts.toml"} <= names
    assert not any(name.startswith(("tests/", "scripts/", "runs/")) for name in names)


def test_the_wheel_says_what_it_needs(wheel: Path) -> None:
    content = zipfile.ZipFile(wheel)
    metadata = next(content.read(name).decode() for name in content.namelist() if name.endswith(".dist-info/METADATA"))
    assert "Requires-Python: >=3.11" in metadata
    for version in ("3.11", "3.12", "3.13"):
        assert f"Classifier: Programming Language :: Python :: {version}" in metadata
    assert re.search(r"Requires-Dist: transformers.*>=5", metadata)


def test_the_installed_program_is_the_wheels_and_knows_its_prompts(installed: Path, tmp_path: Path) -> None:
    code = "import abliterate; from abliterate.prompts.read import bundled_names; print(abliterate.__file__, *bundled_names())"
    done = subprocess.run([str(installed), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    where, *names = done.stdout.split()
    assert Path(where).is_relative_to(installed.parents[1]) and {"harmful", "harmless", "censorship"} <= set(names)
    shown = run(installed, tmp_path, "--help")
    assert shown.returncode == 0 and "reproduce" in shown.stdout


def test_run_and_audit_work_from_the_wheel_and_colour_nothing_in_a_pipe(installed: Path, tiny: Tiny, tmp_path: Path) -> None:
    model = str(tiny(says="I won't."))
    audited = run(
        installed, tmp_path, "audit", "--model", model, "--prompts", "censorship", "--limit", "2", "--max-new-tokens", "4", "--out", "a"
    )
    assert audited.returncode == 0, audited.stderr
    roles = {"target": "Burn the {}!", "baseline": "Draw the {}.", "keep": "Steal the {}?", "harmless": "Name a {}"}
    for role, pattern in roles.items():
        (tmp_path / f"{role}.txt").write_text("\n".join(pattern.format(word) for word in WORDS), encoding="utf-8")
    flags = [part for role in roles for part in (f"--{role}", f"{role}.txt")]
    edited = run(installed, tmp_path, "run", "--model", model, *flags, "--candidates", "2", "--max-new-tokens", "4", "--out", "r")
    assert edited.returncode == 0, edited.stderr
    assert json.loads((tmp_path / "r" / "report.json").read_text(encoding="utf-8"))["edit"]["tensors"] > 0
    assert ESCAPE not in audited.stdout + audited.stderr + edited.stdout + edited.stderr


def test_bad_input_ends_with_2_from_the_wheel_too(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "audit", "--model", "nowhere", "--prompts", "harmful", "--out", "a")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and ESCAPE not in done.stderr


def options() -> Iterator[tuple[str, object]]:
    """Every parameter of every command."""
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, name
        yield from ((f"{name} {parameter.name}", parameter) for parameter in command.params)
    yield from ((f"abliterate {parameter.name}", parameter) for parameter in group.params)


def test_every_option_of_every_command_is_explained() -> None:
    found = dict(options())
    assert len(found) > 100
    assert [name for name, parameter in found.items() if len(getattr(parameter, "help", None) or "") < 5] == []


def test_a_shell_is_told_how_to_complete(installed: Path, tmp_path: Path) -> None:
    shown = run(installed, tmp_path, "--help").stdout
    assert "--install-completion" in shown and "--show-completion" in shown
    program = "import sys; from importlib.metadata import distribution as of; sys.argv = ['abliterate']; "
    program += "sys.exit(of('abliterate').entry_points['abliterate'].load()())"  # as the script that pip makes of it calls it
    asked = {**os.environ, "_ABLITERATE_COMPLETE": "complete_bash", "COMP_WORDS": "abliterate re", "COMP_CWORD": "1"}
    completed = subprocess.run([str(installed), "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=asked)
    assert completed.returncode == 0 and set(completed.stdout.split()) == {"report", "reproduce"}, completed.stderr


def test_no_colour_is_written_where_none_is_wanted(installed: Path, tmp_path: Path) -> None:
    """On a terminal of its own."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    call = [str(installed), "-m", "abliterate", "audit", "--model", "nowhere", "--prompts", "harmful", "--out", "a"]
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(call, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True)
    os.close(theirs)
    assert process.wait(120) == 2
    assert ESCAPE.encode() not in os.read(ours, 65536)
    os.close(ours)


def test_the_versions_promised_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "License :: OSI Approved :: Apache Software License" not in project["classifiers"]  # said by the licence itself (PEP 639)
    assert project["requires-python"] == ">=3.11"
