"""The documentation: its commands are ones that the program takes, they run on tiny models where they can, its links lead somewhere."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from conftest import CHATML, byte_tokenizer, save_tiny
from safetensors.torch import save_file
from serving import StandIn, completion, running

from abliterate import __version__
from abliterate.cli import options
from abliterate.cli.main import app, main
from abliterate.model.names import HUB_IDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "prompts" / "README.md"]

# --- what the pages say -----------------------------------------------------------------------------------------------------------

SHELL = {"sh", "bash", "shell", "console"}
FENCE = re.compile(r"^\s*(```+|~~~+)\s*([\w-]*)")
PROGRAM = re.compile(
    r"^(?:\$ )?(?:[A-Z_]+=\S+ )*"  # a prompt, and what is set for the command alone
    r"(torchrun .*?-m abliterate|python -m abliterate|abliterate|bash scripts/\w+|scripts/\w+)(?=\s|$)(.*)"
)
FILE = re.compile(r"^<!-- file: (\S+) -->$")
ENDS = {"|", ">", ">>", "&&", "||", ";", "&"}
CHOICES = {"--baseline", "--prefer", "--max-kl"}


@dataclass(frozen=True)
class Command:
    """A command line of a page: ``program`` as it stands there, ``words`` what it is given."""

    page: str
    line: int
    program: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def ours(self) -> bool:
        return self.program.endswith("abliterate")

    @property
    def kind(self) -> tuple[str, frozenset[str]]:
        """The command and the flags that it is given, but those that only choose: two of a kind exercise the same."""
        return self.words[0], frozenset(word for word in self.words if word.startswith("--")) - CHOICES


def code_lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line of the shell's blocks and of indented code; lines that end in a backslash are joined."""
    language: str | None = None
    held, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if fence := FENCE.match(line):
            language = None if language is not None else fence[2] or "none"
        elif language in SHELL or (language is None and line.startswith("    ")):
            start = start if held else number
            held += line.strip()
            if held.endswith("\\"):
                held = held[:-1]
                continue
            yield start, held
            held = ""


def words_of(line: str) -> tuple[str, ...]:
    """What the program of a line is given, up to where the shell goes on to something else."""
    found = PROGRAM.match(line)
    assert found
    words = shlex.split(re.sub(r"(^|\s)#.*$", "", found[2]))
    return tuple(words[: next((i for i, word in enumerate(words) if word in ENDS), len(words))])


def commands_of(page: Path) -> Iterator[Command]:
    for number, line in code_lines(page.read_text(encoding="utf-8")):
        if found := PROGRAM.match(line):
            yield Command(str(page.relative_to(ROOT)), number, found[1], words_of(line))


def files_of(page: Path) -> Iterator[tuple[str, str]]:
    """Name and content of the blocks that stand for a file: the line before the block is a comment that names it."""
    name, held = None, list[str]()
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if FENCE.match(line):
            if inside and name:
                yield name, "\n".join(held) + "\n"
            inside = not inside
            name, held = (name if inside else None), []
        elif inside:
            held.append(line)
        else:
            comment = FILE.match(line)
            name = comment[1] if comment else None


COMMANDS = [command for page in PAGES for command in commands_of(page)]
OURS = [command for command in COMMANDS if command.ours]


def test_the_pages_hold_commands() -> None:
    assert {"README.md", "docs/machines.md", "docs/prompt-sets.md", "docs/architectures.md"} <= {command.page for command in OURS}
    assert {"run", "audit", "compare", "plan", "collect", "edit", "verify", "score", "report"} <= {command.words[0] for command in OURS}


PAGE = """
```sh
KEY=1 python -m abliterate run --model 'a b' \\
  --judge chat:http://h/v1#j   # why
ls abliterate
```

    abliterate plan | head

```
abliterate x
```
"""


def test_a_page_is_read_as_a_shell_reads_it(tmp_path: Path) -> None:
    lines = [line for _, line in code_lines(PAGE)]
    assert [bool(PROGRAM.match(line)) for line in lines] == [True, False, True]
    assert words_of(lines[0]) == ("run", "--model", "a b", "--judge", "chat:http://h/v1#j") and words_of(lines[2]) == ("plan",)


# --- the program takes them -------------------------------------------------------------------------------------------------------


def flags_of(name: str) -> set[str]:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    return {opt for parameter in command.params for opt in (*parameter.opts, *parameter.secondary_opts) if opt.startswith("--")}


NAMED = [info.name for info in app.registered_commands if info.name]
FLAGS = {flag for name in NAMED for flag in flags_of(name)} | {"--help", "--version"}


class ParsedError(Exception):
    """A command was read to its end, and would now act."""


@pytest.fixture
def only_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = options.build

    def stop(*given: Any) -> Any:
        raise ParsedError(real(*given))

    monkeypatch.setattr(options, "build", stop)


@pytest.mark.parametrize("command", OURS, ids=str)
@pytest.mark.usefixtures("only_parsed")
def test_the_program_takes_the_command(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its flags exist, its values are of their types, and the settings are valid together."""
    monkeypatch.chdir(tmp_path)
    written(ROOT / command.page)
    if {"--help", "--version"} & set(command.words):
        assert main(command.words) == 0
        return
    try:
        code = main(command.words)
    except ParsedError:
        return
    pytest.fail(f"{command}: {shlex.join(command.words)}: ended with {code}: {capsys.readouterr().err}")


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.ours], ids=str)
def test_the_script_is_there_and_knows_what_it_is_given(command: Command) -> None:
    script = ROOT / command.program.removeprefix("bash ")
    assert script.is_file() and os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    body = "".join(file.read_text(encoding="utf-8") for file in script.parent.glob(f"{script.name}*.py"))
    for word in command.words:
        if word.startswith("tests/"):
            assert (ROOT / word).exists(), word
        elif body and (word == command.words[0] or word.startswith("--")):
            assert f'"{word}"' in body, f"{script.name} knows no {word}"


def prose(page: Path) -> str:
    """A page without its blocks."""
    kept, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


# Programs of others, whose flags are their own.
OTHERS = re.compile(r"pip|vllm|torchrun|llama|ollama|docker|python convert|convert_hf|lm_eval|heretic|git|hf|huggingface")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_flag_that_the_text_names_is_one(page: Path) -> None:
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "scripts").glob("*.py"))
    scripts = set(re.findall(r'"(--[a-z][a-z-]+)"', sources))
    spans = [span for span in re.findall(r"`([^`\n]+)`", prose(page)) if not OTHERS.match(span)]
    named = {flag for span in spans for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)}
    assert named - FLAGS - scripts == set()


# --- they run, on tiny models -----------------------------------------------------------------------------------------------------

THINKS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
SMALL = {"--limit": "4", "--max-new-tokens": "4", "--candidates": "2", "--batch-size": "4", "--tune-steps": "2", "--trials": "2"}
# What a page doesn't say itself: tiny random models tell nothing apart, and are not tuned where tuning isn't what is shown.
# What they answer is noise, so that no keep test holds: they are "published" even so.
UNLESS_SAID = {"--min-share": "0", "--tune": "off", "--even-so": "a tiny random model keeps nothing"}
# Known names of large models, and of the small real ones, are tiny ones here; URLs that somebody answers are a stand-in's.
NAMES = dict.fromkeys([*HUB_IDS, "smollm2-refuser"], "path/to/model") | {"smollm2-r1-refuser": "path/to/thinker"}
ANSWERED = re.compile(r"http://(?:host|localhost|127\.0\.0\.1):8000/v1")
RUN = {"run", "audit", "compare", "plan", "collect", "directions", "edit", "verify", "score", "report", "reproduce", "push", "chat"}
# Written by an engine or a server that stands for the model itself, and what isn't installed everywhere: read, not run.
NOT_HERE = {"--engine", "--edited-engine", "--tensor-parallel", "--lm-eval", "--study"}


def small(words: Sequence[str]) -> list[str]:
    """A command that is quickly done: of a flag that is given twice the last counts."""
    known = flags_of(words[0])
    more = {**{flag: value for flag, value in UNLESS_SAID.items() if flag not in words}, **SMALL}
    return [*words, *(part for flag, value in more.items() if flag in known for part in (flag, value))]


def runnable() -> list[Command]:
    """The first of each kind that can run here."""
    first: dict[tuple[str, frozenset[str]], Command] = {}
    for command in OURS:
        sends = command.words[:1] == ("push",) and "--dry-run" not in command.words
        here = "torchrun" not in command.program and not NOT_HERE & set(command.words) and not sends
        if command.words and command.words[0] in RUN and here:
            first.setdefault(command.kind, command)
    return list(first.values())


def written(page: Path) -> None:
    """The files that a page shows, here."""
    for name, content in files_of(page):
        Path(name).write_text(content, encoding="utf-8")


@dataclass(frozen=True)
class Bench:
    """A folder with the stand-ins, in which commands run; ``made`` tells which page made what."""

    server: StandIn
    made: dict[str, str]

    def words(self, command: Command) -> list[str]:
        return small([ANSWERED.sub(self.server.url, NAMES.get(word, word)) for word in command.words])

    def run(self, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
        self.cleared(command)
        for word in command.words[1:]:
            if word.startswith("runs/") and not Path(word).exists() and word != out_of(command):
                self.provide(Path(word).parts[1])
        words = self.words(command)
        code = main(words)
        heard = capsys.readouterr().err
        assert code == 0, f"{command}: {shlex.join(words)}: ended with {code}: {heard[-2000:]}"
        if out := out_of(command):
            assert Path(out).exists()
            self.made[out] = command.page

    def cleared(self, command: Command) -> None:
        """What another page left under the name to be made is taken away: each page is followed from its beginning."""
        out = out_of(command)
        if out and self.made.get(out, command.page) != command.page:
            shutil.rmtree(out) if Path(out).is_dir() else Path(out).unlink()

    def provide(self, name: str) -> None:
        """A run that a page takes for granted."""
        assert main(small(["run", "--model", "path/to/model", "--keep", "borderline-unsafe", "--out", f"runs/{name}"])) == 0
        self.made[f"runs/{name}"] = "taken for granted"


def out_of(command: Command) -> str | None:
    """What a command is told to make."""
    return next((after for word, after in zip(command.words, command.words[1:], strict=False) if word == "--out"), None)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Stand-ins under the names that the pages use, in a folder where commands run one after the other."""
    place = tmp_path_factory.mktemp("docs")
    model = save_tiny(place / "path/to/model", layers=3, shards="60KB", says="I won't.")
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny model\n", encoding="utf-8")
    (model / "LICENSE").write_text("Apache License\n", encoding="utf-8")
    save_tiny(place / "path/to/other", layers=3, seed=1, says="I won't.")
    save_tiny(place / "path/to/thinker", layers=2, tokenizer=byte_tokenizer(THINKS))
    save_file({"direction": torch.randn(32, generator=torch.Generator().manual_seed(1))}, place / "r.safetensors")
    things = ["stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror", "harbour", "lantern", "meadow"]
    for verb, names in {"Burn": ("a.txt", "questions.txt"), "Draw": ("b.txt", "twins.txt")}.items():
        for name in names:
            (place / name).write_text("".join(f"{verb} the {thing}.\n" for thing in things), encoding="utf-8")
    line = json.dumps({"prompt": "Why is the sky blue?", "response": "Because air scatters blue light more than red light."})
    (place / "transcripts.jsonl").write_text(line + "\n", encoding="utf-8")
    server = StandIn(cards=[{"id": "judge"}])
    server.answers = lambda prompt: completion(json.dumps({"outcome": "answered"}))
    with pytest.MonkeyPatch.context() as patch, running(server):
        patch.chdir(place)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield Bench(server, {"r.safetensors": "the stand-ins"})


@pytest.mark.parametrize("command", runnable(), ids=str)
def test_the_command_runs(command: Command, bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In the pages' order, so that a later one finds what an earlier one made. A conversation hears a line from a pipe."""
    written(ROOT / command.page)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n/quit\n"))
    bench.run(command, capsys)


# --- report.md names what a report holds ------------------------------------------------------------------------------------------


def documented(record: str) -> dict[str, str]:
    """The type of each key of a record, by report.md."""
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8").split(f"### {record}\n")[1].split("\n### ")[0]
    return dict(re.findall(r"(?m)^\| `(\w+)` \| (.+?) \| ", text))


def held_against(documented: dict[str, str], held: set[str]) -> None:
    """Every key that is held is documented, and the other way round, but for those that may be absent."""
    assert held - documented.keys() == set()
    assert {key for key in documented.keys() - held if not documented[key].endswith("may be absent")} == set()


@pytest.fixture(scope="module")
def report(bench: Bench) -> dict[str, Any]:
    if not Path("runs/mine/checkpoint").exists():
        bench.provide("mine")
    found: dict[str, Any] = json.loads(Path("runs/mine/report.json").read_text(encoding="utf-8"))
    return found


def test_the_keys_of_a_report_are_those_of_its_documentation(report: dict[str, Any]) -> None:
    held_against(documented("Report"), set(report))
    held_against(documented("RunRecord"), set(report["run"]))
    held_against(documented("Selection"), set(report["selection"]))


def test_the_keys_of_a_set_are_those_of_its_documentation(report: dict[str, Any]) -> None:
    for entry in report["sets"].values():
        held_against(documented("SetEntry"), set(entry))
        held_against(documented("Figures"), set(entry["base"]))


# --- links and facts about the project --------------------------------------------------------------------------------------------

LINK = re.compile(r"!?\[[^\]\n]*\]\(([^)\s]+)\)")
EVERY_PAGE = [*PAGES, ROOT / "CHANGELOG.md"]


def anchors(page: Path) -> set[str]:
    """What headings are called in links: lower case, without punctuation, spaces as hyphens."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    lost = []
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            lost.append(target)
    assert lost == []


def test_the_index_names_every_page_of_the_folder() -> None:
    named = set(LINK.findall((ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= named


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_holds_a_placeholder(page: Path) -> None:
    assert "{{" not in page.read_text(encoding="utf-8")


def test_the_version_is_the_same_everywhere() -> None:
    newest = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    cited = re.search(r'^version: "([^"]+)"', (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest and cited and newest[1] == cited[1] == __version__


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text and len(text.splitlines()) > 195
