"""Output to any stream: narrow encodings, closed or full streams, readers that go away, libraries that print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BEGINS = "from abliterate.terminal.streams import prepare\nprepare()\n"


def ran(*arguments: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run Python, with its streams redirected by a shell."""
    unset = {name for name in os.environ if name.startswith(("TQDM_", "TRANSFORMERS_", "HF_", "DATASETS_", "PYTHON"))}
    surroundings = {name: value for name, value in os.environ.items() if name not in unset}
    surroundings |= {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "HF_HUB_OFFLINE": "1", **environment}
    shell = ["bash", "-c", f'"$@" {redirect}', "bash", sys.executable, *arguments]
    return subprocess.run(shell, capture_output=True, env=surroundings, timeout=120, cwd=ROOT)


SPEAKS = (
    BEGINS
    + """
from rich.console import Console
from rich.table import Table
from abliterate.terminal.progress import say, stage
table = Table("KL(base‖edited)")
table.add_row("0.1 → 0.2 é 法国")
Console().print(table)
print("a name: \\udce9 → 法国")
say("said → 法国")
with stage("tokens → 法国", 3) as advance:
    advance(3)
"""
)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_character_that_a_stream_can_not_hold_is_replaced(encoding: str) -> None:
    done = ran("-c", SPEAKS, PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert b"a name: ? " in done.stdout and b"said " in done.stderr
    assert ("→ 法国".encode() in done.stdout) == (encoding == "utf-8") == ("→ 法国".encode() in done.stderr)


def test_a_locale_without_an_encoding_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "speaks.py").write_text(SPEAKS, encoding="utf-8")
    done = ran(str(tmp_path / "speaks.py"), LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0 and b"a name: ? ? ??" in done.stdout


@pytest.mark.parametrize("redirect", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_closed_is_not_spoken_to_and_no_file_takes_its_number(redirect: str, tmp_path: Path) -> None:
    file = tmp_path / "mine"
    code = SPEAKS + f"file = open({str(file)!r}, 'w')\nfile.write(str(file.fileno()))"
    assert ran("-c", code, redirect=redirect).returncode == 0
    assert int(file.read_text()) > 2


def test_who_stops_reading_changes_no_exit_code(tmp_path: Path) -> None:
    done = tmp_path / "done"
    code = SPEAKS + f"for i in range(9999): print(i); say('on')\nopen({str(done)!r}, 'w').close()\nraise SystemExit(1)"
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=write, stderr=write, env={**os.environ, "PYTHONPATH": str(ROOT)})
    os.close(write)
    assert process.wait(timeout=120) == 1 and done.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full exists only on Linux")
def test_a_full_disk_under_stdout_is_told_and_under_stderr_ends_no_work() -> None:
    done = ran("-m", "abliterate", "--version", redirect="> /dev/full")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert done.stderr.startswith(b"abliterate: no space left on the disk (stdout)")
    assert ran("-c", SPEAKS, redirect="2> /dev/full").returncode == 0
    assert ran("-m", "abliterate", "bogus", redirect="2> /dev/full").returncode == 2


def test_scored_lines_stay_json_in_every_encoding(tmp_path: Path) -> None:
    row = {"prompt": "Où ? 法国 😀", "response": "Là-bas: é, 巴黎, 😀 and \ud83d."}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    done = ran("-m", "abliterate", "score", str(tmp_path / "t.jsonl"), PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert row.items() <= json.loads(done.stdout).items()


LIBRARIES = """
import logging, warnings
from tqdm.auto import tqdm
from huggingface_hub.utils import logging as hub
from transformers.utils import logging as transformers
warnings.warn("`is_gradient_checkpointing` is deprecated", FutureWarning)
for _ in tqdm(range(3), desc="Converting"): pass
for _ in transformers.tqdm(range(3), desc="Writing model shards"): pass
logging.getLogger("a library").warning("advice")
hub.get_logger("huggingface_hub.file_download").warning("unauthenticated requests")
transformers.get_logger("transformers.modeling_utils").warning("advice")
print("done", flush=True)
"""


def test_libraries_say_nothing() -> None:
    loud = ran("-c", LIBRARIES)
    assert loud.stderr.count(b"\n") >= 3  # otherwise the test shows nothing
    quiet = ran("-c", BEGINS + LIBRARIES)
    assert (quiet.stdout, quiet.stderr) == (b"done\n", b"")


def test_a_library_that_the_user_wants_to_hear_is_heard() -> None:
    told = ran("-W", "default", "-c", BEGINS + LIBRARIES, TQDM_DISABLE="").stderr
    assert b"FutureWarning" in told and b"Writing model shards" in told
