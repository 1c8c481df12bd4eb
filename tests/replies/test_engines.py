"""Engines by the command line: an audit of a server, a run whose replies come from servers, what is recorded and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer, save_tiny
from serving import StandIn, completion, running, status

from abliterate.cli.main import main
from abliterate.commands import run as pipeline
from abliterate.config import AuditConfig, RunConfig, server_url
from abliterate.errors import InputError
from abliterate.model.source import ModelSource
from abliterate.replies.api_key import OWN
from abliterate.replies.engine import engine_of, foresee, wanted_of
from abliterate.replies.served import Wanted
from abliterate.report.first import headline
from abliterate.report.tree.report import Report
from abliterate.runs.document import EngineRecord
from abliterate.runs.folder import RunFolder

Capture = pytest.CaptureFixture[str]
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN, KEY)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with running(StandIn()) as made:
        yield made


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "asked.txt"
    path.write_text("".join(f"Tell me about number {n}.\n" for n in range(9)), encoding="utf-8")
    return path


def one_line(capsys: Capture) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("abliterate: ")]
    assert len(lines) == 1
    return lines[0]


def refusal(capsys: Capture, *call: object) -> str:
    capsys.readouterr()
    assert main([str(part) for part in call]) == 2
    return one_line(capsys)


def texts(folder: Path) -> str:
    """All that a run folder says."""
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in folder.rglob("*") if path.is_file())


# --- an audit of a server ---------------------------------------------------------------------------------------------------------


def audit(server: StandIn, asked: Path, out: Path, *flags: object) -> int:
    return main(
        ["audit", "--model", f"{server.url}/", "--prompts", str(asked), "--max-new-tokens", "7", "--out", str(out), *map(str, flags)]
    )


def test_an_audit_of_a_server_is_reported_under_the_servers_name_for_its_model(server: StandIn, asked: Path, tmp_path: Path) -> None:
    server.cards = [{"id": "acme/large", "root": "/weights/large", "owned_by": "vllm"}]
    server.answers = lambda prompt: completion("I'm sorry, but I can't help with that." if "3" in prompt else "It is a number.")
    assert audit(server, asked, tmp_path / "out") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["sets"]["asked"]["n"] == 9 and report["sets"]["asked"]["base"]["refused"]["k"] == 1
    assert headline(Report.read(tmp_path / "out" / "report.json")).startswith("What acme/large withholds")
    assert "<title>abliterate: acme/large</title>" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert report["run"]["resolved"]["engines"]["base"] == {
        "kind": "server", "url": server.url, "model": "acme/large", "root": "/weights/large", "owner": "vllm",
        "chosen_by": "the only one served",
    }  # fmt: skip


def test_what_is_not_known_of_a_servers_model_is_null_and_listed(server: StandIn, asked: Path, tmp_path: Path) -> None:
    assert audit(server, asked, tmp_path / "out") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    run = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert [run[key] for key in ("model_path", "model_hashes", "hub_id", "revision")] == [None] * 4
    assert "run.model_hashes" in report["not_measured"]


def test_the_key_is_written_nowhere(server: StandIn, asked: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server.script = {"Tell me about number 4.": [status(500, f"bad key {KEY}")]}
    assert audit(server, asked, tmp_path / "out") == 0
    assert {headers["Authorization"] for _, _, headers in server.asked} == {f"Bearer {KEY}"}
    captured = capfd.readouterr()
    assert KEY not in texts(tmp_path / "out") + captured.out + captured.err


def test_an_audit_that_is_done_needs_no_server(server: StandIn, asked: Path, tmp_path: Path) -> None:
    assert audit(server, asked, tmp_path / "out") == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    server.die()
    assert audit(server, asked, tmp_path / "out", "--patience", 0) == 0
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_an_audit_whose_server_goes_away_goes_on(server: StandIn, asked: Path, tmp_path: Path, capsys: Capture) -> None:
    server.script = {"Tell me about number 6.": [server.die]}
    call = ["audit", "--model", server.url, "--prompts", asked, "--out", tmp_path / "out", "--concurrency", 1, "--patience", 0]
    assert "run the same command again" in refusal(capsys, *call)
    assert len((tmp_path / "out" / "transcripts" / "base.jsonl").read_text(encoding="utf-8").splitlines()) == 6
    with running(StandIn(server.server_address[1])) as again:
        assert main([str(part) for part in call]) == 0
        assert sorted(again.prompts_asked()) == [f"Tell me about number {n}." for n in (6, 7, 8)]


def test_replies_begun_by_one_model_are_not_gone_on_with_by_another(server: StandIn, asked: Path, tmp_path: Path, capsys: Capture) -> None:
    assert audit(server, asked, tmp_path / "out") == 0
    transcripts = tmp_path / "out" / "transcripts" / "base.jsonl"
    transcripts.write_bytes(b"".join(transcripts.read_bytes().splitlines(keepends=True)[:4]))
    server.cards = [{"id": "another"}]
    capsys.readouterr()
    assert audit(server, asked, tmp_path / "out") == 2
    assert "generated by server (tiny), but now the engine is server (another)" in one_line(capsys)
    server.cards = [{"id": "tiny", "root": None}]
    assert audit(server, asked, tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://user:hush@127.0.0.1/v1", "a key belongs in the environment"),
        ("http://hush@127.0.0.1/v1", "a key belongs in the environment"),
        ("http://127.0.0.1/v1?api_key=hush", "a key belongs in the environment"),
        ("http://127.0.0.1/v1#hush", "a key belongs in the environment"),
        ("ftp://user:hush@127.0.0.1/v1", "give one like http://host:8000/v1"),
        ("http://", "give one like http://host:8000/v1"),
        ("http://host:99999/v1", "give one like http://host:8000/v1"),
        ("http://[::1/v1", "give one like http://host:8000/v1"),
    ],
)
@pytest.mark.parametrize("flag", ["--model", "--engine"])
def test_an_address_that_will_not_do_is_refused_and_no_secret_repeated(
    flag: str, url: str, says: str, asked: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = [] if flag == "--model" else ["--model", tmp_path]
    line = refusal(capsys, "audit", *model, flag, url, "--prompts", asked, "--out", tmp_path / "out")
    assert line.startswith(f"abliterate: {flag}: ") and says in line and "hush" not in line
    assert not (tmp_path / "out").exists()


def test_a_password_without_its_scheme_is_not_repeated(tmp_path: Path, asked: Path, capsys: Capture) -> None:
    line = refusal(capsys, "audit", "--model", tmp_path, "--engine", "user:hush@host/v1", "--prompts", asked, "--out", tmp_path / "out")
    assert "hush" not in line


@pytest.mark.parametrize(
    ("given", "url"),
    [("HTTP://Host:8000/v1/", "http://Host:8000/v1"), (" https://h ", "https://h"), ("http://[::1]:8000/a/v1//", "http://[::1]:8000/a/v1")],
)
def test_an_address_has_one_form(given: str, url: str) -> None:
    assert server_url(given, "--engine") == url


# --- settings ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (["run", "--model", "http://127.0.0.1/v1"], "this needs the weights"),
        (["collect", "--model", "http://127.0.0.1/v1"], "this needs the weights"),
        (["run", "--model", "m", "--engine", "llama.cpp"], "transformers, vllm, or a server's URL"),
        (["run", "--model", "m", "--edited-engine", "http://127.0.0.1/v1"], "either serve both models"),
        (["run", "--model", "m", "--engine", "http://127.0.0.1/v1", "--edited-engine", "vllm"], "--edited-engine: not the URL"),
        (["run", "--model", "m", "--concurrency", "0"], "--concurrency 0"),
        (["audit", "--model", "http://127.0.0.1/v1", "--engine", "vllm", "--prompts", "p"], "leave --engine out"),
        (["audit", "--model", "m", "--edited-engine", "http://127.0.0.1/v1", "--prompts", "p"], "No such option"),
    ],
)
def test_settings_that_do_not_fit_are_refused(call: list[str], says: str, tmp_path: Path, capsys: Capture) -> None:
    assert says in refusal(capsys, *call, "--out", tmp_path / "out")


def test_a_server_may_be_given_twice_for_an_audit() -> None:
    config = AuditConfig(model="http://h/v1", engine="http://h/v1/", prompts=("p",))
    assert config.engine == config.model


def test_a_model_goes_by_its_folder_its_hub_id_and_its_short_names(tmp_path: Path) -> None:
    hub = wanted_of(ModelSource("qwen3-4b", tmp_path, "Qwen/Qwen3-4B", "abc"))
    assert hub == Wanted(tmp_path, ("Qwen/Qwen3-4B", "Qwen3-4B", "qwen3-4b"))
    assert wanted_of(ModelSource(str(tmp_path), tmp_path)) == Wanted(tmp_path)
    assert wanted_of(ModelSource("smollm2-refuser", tmp_path)).names == ("smollm2-refuser",)


def test_what_is_here_alone_can_not_be_asked_without_its_folder() -> None:
    with pytest.raises(InputError, match="needs the model's folder"):
        engine_of(AuditConfig(model="m", prompts=("p",)), None, Wanted())


def test_a_server_that_is_not_there_yet_is_said_early_and_no_reason_to_stop(server: StandIn, capfd: pytest.CaptureFixture[str]) -> None:
    foresee(RunConfig(model="m", engine=server.url))
    assert capfd.readouterr().err == ""
    server.die()
    foresee(RunConfig(model="m", engine=server.url))
    assert "no server answers yet; it must be up when" in capfd.readouterr().err


def test_a_key_that_the_server_does_not_take_is_said_early(server: StandIn) -> None:
    server.models = status(401, "who are you?")
    with pytest.raises(InputError, match="who are you"):
        foresee(RunConfig(model="m", engine=server.url))
    server.models = status(404)
    foresee(RunConfig(model="m", engine=server.url))


def test_a_missing_vllm_is_said_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abliterate.replies.vllm_engine.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="vLLM is not installed"):
        foresee(RunConfig(model="m", engine="vllm"))


# --- a run whose replies come from servers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", says="I won't.")


@pytest.fixture
def call(model: Path, tmp_path: Path) -> Callable[..., list[str]]:
    words = ["stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror", "harbour", "lantern", "meadow"]
    flags: list[str] = []
    for role, text in {"target": "Burn the {}!", "baseline": "Draw the {}.", "harmless": "Name a {}"}.items():
        (tmp_path / f"{role}.txt").write_text("\n".join(text.format(w) for w in words) + "\n", encoding="utf-8")
        flags += [f"--{role}", str(tmp_path / f"{role}.txt")]
    fixed = ["run", "--model", str(model), *flags, "--max-new-tokens", "4", "--candidates", "2", "--out", str(tmp_path / "run")]
    return lambda *more: [*fixed, *map(str, more)]


def card(path: Path, name: str = "served") -> list[dict[str, Any]]:
    return [{"id": name, "root": str(path), "owned_by": "vllm"}]


def test_a_run_asks_one_server_for_the_base_and_another_for_the_edited_model(
    server: StandIn, model: Path, call: Callable[..., list[str]], tmp_path: Path, capsys: Capture
) -> None:
    """As it goes with engines that serve one model each: the run stops where the edited checkpoint is wanted, and goes on."""
    server.cards = card(model)
    server.knows = lambda name: name == "served"
    server.answers = lambda prompt: completion("I'm sorry, but I can't help with that.")
    line = refusal(capsys, *call("--engine", server.url))
    assert "doesn't serve the edited model (it lists 'served')" in line
    assert f"serve {tmp_path / 'run' / 'checkpoint'} and run the same command again with --edited-engine URL" in line
    asked = len(server.asked)
    with running(StandIn(cards=card(tmp_path / "run" / "checkpoint"))) as other:
        other.answers = lambda prompt: completion("Gladly: here it is.")
        assert main(call("--engine", server.url, "--edited-engine", other.url)) == 0
    assert [path for path, _, _ in server.asked[asked:]] == ["/v1/models"]  # whether it is there, and no more
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    target = report["sets"]["target"]
    assert (target["base"]["refused"]["rate"], target["edited"]["refused"]["rate"]) == (1.0, 0.0)
    engines = report["run"]["resolved"]["engines"]
    assert engines["base"]["root"] == str(model) and engines["edited"]["root"] == str(tmp_path / "run" / "checkpoint")
    assert (engines["edited"]["url"], engines["edited"]["chosen_by"]) == (other.url, "its folder")
    assert report["run"]["model_hashes"] and "run.model_hashes" not in report["not_measured"]
    assert KEY not in texts(tmp_path / "run")
    server.die()
    assert main(call("--engine", server.url)) == 0  # all is there


def test_a_server_that_serves_the_base_alone_is_never_asked_for_the_edited_model(
    server: StandIn, model: Path, call: Callable[..., list[str]], tmp_path: Path, capsys: Capture
) -> None:
    server.cards = [{"id": "whatever"}]  # it doesn't say what it is, and answers to any name
    line = refusal(capsys, *call("--engine", server.url))
    assert "doesn't serve the edited model" in line
    line = refusal(capsys, *call("--engine", server.url, "--edited-engine", server.url))
    assert "serves 'whatever', which is the base and not the edited model" in line
    assert not (tmp_path / "run" / "transcripts" / "edited.jsonl").exists()


def test_a_run_goes_on_where_its_server_has_moved_but_not_with_another_kind_of_engine(
    server: StandIn, model: Path, call: Callable[..., list[str]], tmp_path: Path, capsys: Capture
) -> None:
    server.cards = card(model)
    assert "doesn't serve the edited model" in refusal(capsys, *call("--engine", server.url))
    with running(StandIn(cards=[*card(model), *card(tmp_path / "run" / "checkpoint", "edited")])) as moved:
        assert "holds a run with another --engine" in refusal(capsys, *call())
        assert main(call("--engine", moved.url, "--concurrency", 3)) == 0
        assert {asked["model"] for path, asked, _ in moved.asked if asked} == {"edited"}


def test_a_template_that_opens_the_thought_is_known_from_the_folder(server: StandIn, asked: Path, tmp_path: Path) -> None:
    opening = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<think>\n{% endif %}"
    model = save_tiny(tmp_path / "thinker", layers=1, tokenizer=byte_tokenizer(opening))
    server.answers = lambda prompt: completion("Let me see, this is", "length")
    call = ["audit", "--model", str(model), "--engine", server.url, "--prompts", str(asked), "--out", str(tmp_path / "out")]
    assert main(call) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["sets"]["asked"]["base"]["outcomes"]["truncated"] == 9


def test_a_server_that_may_leave_out_the_marks_of_thoughts_is_told_how_to_start(
    server: StandIn, asked: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["[THINK]", "[/THINK]"], special_tokens=True)
    folder = save_tiny(tmp_path / "m", layers=2, tokenizer=tokenizer)
    call = ["audit", "--model", str(folder), "--engine", server.url, "--prompts", str(asked), "--limit", "2", "--out", str(tmp_path / "o")]
    assert main([*call, "--max-new-tokens", "4"]) == 0
    assert "start the server with its reasoning parser" in capfd.readouterr().err


def test_the_kind_of_engine_is_recorded_for_transformers_too(model: Path, asked: Path, tmp_path: Path) -> None:
    call = ["audit", "--model", str(model), "--prompts", str(asked), "--max-new-tokens", "2", "--out", str(tmp_path / "out")]
    assert main(call) == 0
    assert RunFolder(tmp_path / "out").record().resolved.engines == {"base": EngineRecord(kind="transformers")}
    assert pipeline.respond(RunFolder(tmp_path / "out"), engine_never, [], "base") == []


def engine_never() -> Any:
    raise AssertionError("all replies are there")
