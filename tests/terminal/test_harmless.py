"""Text of others on the terminal: shown, but without control characters."""

from __future__ import annotations

import io
import json
import unicodedata
from pathlib import Path

import pytest
from rich.progress import Progress
from rich.table import Table

from abliterate.cli.main import main
from abliterate.commands.chat.screen import Plain
from abliterate.commands.chat.speaker import ChatReply
from abliterate.report.reproduction import show
from abliterate.report.tree.reproduction import SCHEMA, Reproduction
from abliterate.terminal.console import HarmlessConsole
from abliterate.terminal.harmless import harmless
from abliterate.terminal.progress import say

EVIL = "a\x1b]0;owned\x07\x1b[2J\x9b1mb\u202ec\r"


def obeyed(text: str) -> list[str]:
    """The control characters of a text."""
    return [c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cf", "Cs")]


def test_what_a_terminal_would_obey_is_shown_as_a_mark() -> None:
    assert harmless("a\x1b[2Jb\u202ec\x9b1m\ud800") == "a\ufffd[2Jb\ufffdc\ufffd1m\ufffd"
    assert harmless("天\tدو\u200cست\n🙂") == "天\tدو\u200cست\n🙂"


def test_a_console_keeps_its_colours_and_nobody_elses() -> None:
    out = io.StringIO()
    console = HarmlessConsole(file=out, force_terminal=True, color_system="standard", width=200, highlight=False)
    table = Table(EVIL)
    table.add_row(EVIL)
    console.print(table)
    console.print(EVIL, style="bold red", markup=False)
    left = out.getvalue().replace("\x1b[1;31m", "").replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert left != out.getvalue() and not obeyed(left) and "owned" in left


def test_a_bar_still_moves_the_cursor() -> None:
    out = io.StringIO()
    with Progress(console=HarmlessConsole(file=out, force_terminal=True, width=80)) as progress:
        progress.add_task("[/] [b]", total=1)
    assert "\x1b[?25l" in out.getvalue()


def test_every_line_of_ours_is_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    Plain().note(EVIL)
    Plain().told({EVIL: ChatReply(EVIL, 3, True, None)})
    totals = {"identical": 0, "within": 0, "different": 0}
    changes: dict[str, dict[str, list[str]]] = {kind: {} for kind in ("settings", "resolved", "model_hashes")}
    repeated = {"schema": SCHEMA, "of": "run", "kind": "run", "totals": totals, "figures": [], "not_compared": []}
    found = {"by_measure": [{"set": EVIL, "measure": EVIL, **totals}], "differences": {"versions": {EVIL: [EVIL, EVIL]}, **changes}}
    show(Reproduction.model_validate({**repeated, **found}))
    assert main(["score", f"{EVIL}.jsonl"]) == 2
    shown = capsys.readouterr()
    assert not obeyed(shown.err) and not obeyed(shown.out)
    assert shown.err.count("owned") == 2 and shown.out.count("owned") >= 5


def test_scored_lines_hold_the_same_text_and_nothing_that_a_terminal_obeys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": EVIL, "response": f"{EVIL}\x7f\u2066 你好"}
    (tmp_path / "r.jsonl").write_text(json.dumps(row), encoding="utf-8")
    assert main(["score", str(tmp_path / "r.jsonl")]) == 0
    out = capsys.readouterr().out
    assert not obeyed(out) and "你好" in out
    assert {key: json.loads(out)[key] for key in row} == row
