"""From a name to a folder: folders, short names, and a stand-in Hub on this computer."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from conftest import save_tiny

from abliterate.errors import InputError
from abliterate.model import source
from abliterate.model.folder import open_folder
from abliterate.model.source import resolve_model

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNWANTED = ("pytorch_model.bin", "weights.pt", "model.gguf", "consolidated.safetensors", "original/consolidated.safetensors")
TEMPLATES = ("chat_template.json", "processor_config.json", "additional_chat_templates/tool_use.jinja")
KNOWN = ("acme/tiny", "Qwen/Qwen3-0.6B")


class StandIn(BaseHTTPRequestHandler):
    """The few requests of a snapshot download: revision, tree, and each file's head and body."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes] = {}  # noqa: RUF012
    asked: list[tuple[str, str]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append((self.command, path))
        if path.startswith("/api/models/"):
            owner, name, kind, *rest = path.removeprefix("/api/models/").split("/")
            self._api(f"{owner}/{name}", kind, rest[0] if rest else "")
        else:
            owner, name, _, revision, file = path.removeprefix("/").split("/", 4)
            self._file(f"{owner}/{name}", revision, file)

    do_HEAD = do_GET  # noqa: N815

    def _api(self, model: str, kind: str, revision: str) -> None:
        if model == "acme/gated":
            return self._answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Ask for access first."})
        if model not in KNOWN:
            return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", "v1", COMMIT):
            return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        tree = [{"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()} for n, b in self.files.items()]
        info = {"id": model, "sha": COMMIT, "siblings": [{"rfilename": n} for n in self.files]}
        return self._answer(200, json.dumps(tree if kind == "tree" else info).encode(), {"Content-Type": "application/json"})

    def _file(self, model: str, revision: str, file: str) -> None:
        if model not in KNOWN or file not in self.files:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        etag = f'"{hashlib.sha1(self.files[file]).hexdigest()}"'
        return self._answer(200, self.files[file], {"ETag": etag, "X-Repo-Commit": COMMIT})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing on the terminal."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("hub") / "tiny", layers=1)


@pytest.fixture(scope="module")
def hub(model: Path) -> Iterator[str]:
    """The stand-in's address; it holds a tiny model, and beside it pickles and second copies of the weights."""
    StandIn.files = {p.name: p.read_bytes() for p in sorted(model.iterdir())}
    StandIn.files |= dict.fromkeys(TEMPLATES, b"{}")
    StandIn.files |= dict.fromkeys(UNWANTED, b"not wanted") | {"LICENSE": b"Free.", "README.md": b"# Tiny"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


ASK = """
import json, sys
from abliterate.errors import InputError
from abliterate.model.source import resolve_model
for given, revision in json.loads(sys.argv[1]):
    try:
        found = resolve_model(given, revision)
        print(json.dumps([str(found.path), found.hub_id, found.revision]))
    except InputError as error:
        print(json.dumps([str(error)]))
"""


def ask(home: Path, endpoint: str, *wanted: tuple[str, str | None], **more: str) -> list[list[str]]:
    """``resolve_model`` of each in a fresh process whose Hub is ``endpoint`` and whose cache is ``home``."""
    kept = {k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY") and not k.startswith(("HF_", "HUGGING"))}
    clean = {
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(wanted)], capture_output=True, text=True, env={**kept, **clean, **more}, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def fetched(hub: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]], list[tuple[str, str]]]:
    """The cache, what was found, and what was asked, after one download under three names and two failures."""
    home = tmp_path_factory.mktemp("home")
    StandIn.asked.clear()
    names = [("acme/tiny", None), ("acme/tiny", "v1"), ("Qwen3-0.6B", None), ("acme/none", None), ("acme/tiny", "v2"), ("acme/gated", None)]
    return home, ask(home, hub, *names), list(StandIn.asked)


def test_a_hub_id_is_downloaded_whole_and_opens(fetched: tuple[Path, list[list[str]], Any], model: Path) -> None:
    path = Path(fetched[1][0][0])
    for file in model.iterdir():
        assert (path / file.name).read_bytes() == file.read_bytes()
    assert open_folder(path).layers == 1


def test_the_licence_and_the_card_come_with_the_model(fetched: tuple[Path, list[list[str]], Any]) -> None:
    path = Path(fetched[1][0][0])
    assert (path / "LICENSE").read_text() == "Free." and (path / "README.md").read_text() == "# Tiny"


def test_every_file_that_a_chat_template_may_stand_in_comes_with_the_model(fetched: tuple[Path, list[list[str]], Any]) -> None:
    assert [name for name in TEMPLATES if not (Path(fetched[1][0][0]) / name).is_file()] == []


def test_pickles_and_other_formats_are_never_fetched(fetched: tuple[Path, Any, list[tuple[str, str]]]) -> None:
    bodies = [path for method, path in fetched[2] if method == "GET" and "/resolve/" in path]
    assert any(path.endswith("/model.safetensors") for path in bodies)
    assert [path for path in bodies if path.endswith((".bin", ".pt", ".gguf"))] == []


def test_a_second_copy_of_the_weights_is_not_fetched(fetched: tuple[Path, Any, list[tuple[str, str]]]) -> None:
    """Mistral's repositories hold consolidated.safetensors beside the shards, others the same in original/."""
    assert [path for _, path in fetched[2] if "/resolve/" in path and "consolidated" in path] == []


def test_the_commit_is_recorded_whatever_branch_or_tag_was_asked_for(fetched: tuple[Path, list[list[str]], Any]) -> None:
    assert [found[1:] for found in fetched[1][:2]] == [["acme/tiny", COMMIT]] * 2
    assert fetched[1][0][0] == fetched[1][1][0]


def test_a_short_name_in_any_case_is_fetched_from_its_hub_id(fetched: tuple[Path, list[list[str]], Any]) -> None:
    assert fetched[1][2][1:] == ["Qwen/Qwen3-0.6B", COMMIT]


@pytest.mark.parametrize(("place", "name"), [(3, "acme/none"), (4, "acme/tiny"), (5, "acme/gated")], ids=["unknown", "revision", "gated"])
def test_what_the_hub_does_not_give_is_refused_in_one_line(fetched: tuple[Path, list[list[str]], Any], place: int, name: str) -> None:
    (message,) = fetched[1][place]
    assert message.startswith(name) and "\n" not in message
    assert "--model FOLDER" in message and "config.json" in message and "*.safetensors" in message


def test_offline_a_downloaded_model_is_found_and_another_names_the_folder_that_would_do(
    fetched: tuple[Path, list[list[str]], Any], hub: str
) -> None:
    before = len(StandIn.asked)
    found, (message,) = ask(fetched[0], hub, ("acme/tiny", None), ("acme/other", None), HF_HUB_OFFLINE="1")
    assert found == fetched[1][0]
    assert "acme/other" in message and "--model FOLDER" in message and "config.json" in message and "\n" not in message
    assert len(StandIn.asked) == before


def test_the_command_line_ends_with_2_and_one_line_where_the_hub_is_unreachable(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-m", "abliterate", "plan", "--model", "qwen3-0.6b"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "Qwen/Qwen3-0.6B" in done.stderr and "--model FOLDER" in done.stderr


def test_a_folder_is_its_own_model(model: Path) -> None:
    found = resolve_model(str(model))
    assert (found.path, found.hub_id, found.revision) == (model.resolve(), None, None)


def test_a_relative_folder_becomes_absolute(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert resolve_model(model.name).path == resolve_model(f"./{model.name}/").path == model.resolve()


def test_the_home_folder_may_be_written_as_a_tilde(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    assert resolve_model(f"~/{model.name}").path == model.resolve()


@pytest.mark.parametrize("case", ["smollm2", "SmolLM2"])
def test_a_model_built_here_is_found_under_its_name_in_any_case(model: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setitem(source.BUILT_HERE, "smollm2", lambda: model)
    assert resolve_model(case).path == model.resolve()


@pytest.mark.parametrize(
    "given", ["qwen3", "./none", "/none/at/all", "~/none", "a/b/c", "a b/c", "../x", "https://huggingface.co/acme/tiny", "a\0b"]
)
def test_what_is_no_model_is_refused_with_what_would_be_one(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        resolve_model(given)
    message = str(caught.value)
    assert repr(given) in message and "\n" not in message
    assert "not a folder, not a Hub id (owner/name), not a short name (smollm2" in message


@pytest.mark.parametrize("given", ["", "~nosuchuser/model", "m" * 300, "owner/" + "m" * 300])
def test_a_name_that_can_not_be_a_path_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError):
        resolve_model(given)


def test_a_file_is_no_model(model: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        resolve_model(str(model / "model.safetensors"))
