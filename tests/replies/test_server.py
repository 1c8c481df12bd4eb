"""Replies of a server: none lost and none doubled, whatever it does; patience that ends; a key that nobody else sees."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from serving import PATIENT, Action, Handler, StandIn, Time, body, completion, cut, dribble, running, silent, status

from abliterate.errors import InputError
from abliterate.prompts import Prompt, PromptSet
from abliterate.replies.api_key import OPENAI, OWN, key_for
from abliterate.replies.asking import Asking
from abliterate.replies.completion import Reply, reply_of
from abliterate.replies.served import Served
from abliterate.replies.server import LONGEST, AwayError, RefusedError, Server
from abliterate.replies.transcripts import Transcript, append, read

ROOT = Path(__file__).parents[2]
TEXTS = [f"Question {n}" for n in range(12)]
SETS = [
    PromptSet("one", tuple(Prompt(f"p{i}", text, facts=("reply",)) for i, text in enumerate(TEXTS[:5]))),
    PromptSet("two", tuple(Prompt(f"p{i}", text, lang="zh") for i, text in enumerate(TEXTS[5:]))),
]
KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (OWN, OPENAI):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[StandIn]:
    with running(StandIn()) as made:
        yield made


def ask(
    server: StandIn, path: Path, time: Time | None = None, advance: Callable[[int], None] = lambda n: None, **of: Any
) -> list[Transcript]:
    passing = time or Time()
    there = Server(server.url, **{"concurrency": 4, "patience": 100.0, "sleep": passing.sleep, "clock": passing.clock, **of})
    return Asking(there, Served("tiny"), 16).answer(SETS, path, advance)


def whole(made: list[Transcript], path: Path) -> bool:
    """Whether every prompt has its reply, once, in order, and the file holds the same."""
    assert [(t.set, t.id, t.prompt, t.response) for t in made] == [(s.name, p.id, p.text, f"reply to {p.text}") for s in SETS for p in s]
    written = read(path)
    assert len(written) == len(made) and set(written) == set(made)
    return True


def test_every_prompt_is_asked_once_greedily_and_answered_in_order(server: StandIn, tmp_path: Path) -> None:
    told: list[int] = []
    made = ask(server, tmp_path / "t.jsonl", advance=told.append)
    assert whole(made, tmp_path / "t.jsonl") and sum(told) == len(TEXTS)
    assert sorted(server.prompts_asked()) == sorted(TEXTS)
    path, asked, _ = server.asked[0]
    assert path == "/v1/chat/completions"
    assert asked["messages"] == [{"role": "user", "content": asked["messages"][0]["content"]}]
    assert (asked["model"], asked["max_tokens"], asked["temperature"], asked["seed"], asked["stream"]) == ("tiny", 16, 0, 0, False)
    assert made[0].facts == ("reply",) and made[0].new_tokens == 3 and made[-1].lang == "zh"


def test_so_many_requests_as_allowed_are_under_way_and_no_more(server: StandIn, tmp_path: Path) -> None:
    together, lock, inside, most = threading.Barrier(3), threading.Lock(), [0], [0]

    def answer(prompt: str) -> dict[str, Any]:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        together.wait(PATIENT)  # breaks where fewer than three come at once
        with lock:
            inside[0] -= 1
        return completion(f"reply to {prompt}")

    server.answers = answer
    assert whole(ask(server, tmp_path / "t.jsonl", concurrency=3), tmp_path / "t.jsonl")
    assert most[0] == 3


PASSING: dict[str, Action] = {
    "429": status(429),
    "408": status(408),
    "409": status(409),
    "500": status(500, "the engine stumbled"),
    "502": status(502, {"detail": "bad gateway"}),
    "503": body(b""),
    "cut": cut,
    "silent": silent,
    "not JSON": body(b'{"choices": [{"mess'),
    "HTML": body(b"<html>busy</html>"),
    "no choices": body({"object": "chat.completion", "choices": []}),
    "null": body(None),
    "a list": body([1, 2]),
    "deep": body(b"[" * 100_000),
    "content of numbers": body(completion(None) | {"choices": [{"message": {"content": [1]}}]}),
    "aborted": body(completion("half a rep", "abort")),
    "an error with a 200": body({"error": {"message": "busy"}}),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_passes_is_tried_again_and_nothing_is_lost_or_doubled(fault: Action, server: StandIn, tmp_path: Path) -> None:
    server.script = {TEXTS[0]: [fault], TEXTS[3]: [fault, fault], TEXTS[11]: [fault]}
    time = Time()
    assert whole(ask(server, tmp_path / "t.jsonl", time), tmp_path / "t.jsonl")
    assert len(time.waits) == 4 and sorted(server.prompts_asked()) == sorted([*TEXTS, TEXTS[0], TEXTS[3], TEXTS[3], TEXTS[11]])


def test_a_server_that_dribbles_is_given_up_and_asked_again(server: StandIn, tmp_path: Path) -> None:
    server.script = {TEXTS[2]: [dribble], TEXTS[7]: [dribble]}
    assert whole(ask(server, tmp_path / "t.jsonl", request_timeout=0.5, patience=1e9), tmp_path / "t.jsonl")
    assert server.tries[TEXTS[2]] >= 1 and server.tries[TEXTS[7]] >= 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_server_is_given_the_time_that_it_asks_for(form: str, server: StandIn, tmp_path: Path) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=50), usegmt=True)
    server.script = {TEXTS[0]: [status(429, Retry_After="40" if form == "seconds" else later)]}
    time = Time()
    assert whole(ask(server, tmp_path / "t.jsonl", time), tmp_path / "t.jsonl")
    assert len(time.waits) == 1 and 35 < time.waits[0] <= 50


@pytest.mark.parametrize("asked", ["0", "-5", "soon", "", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"])
def test_a_wait_that_is_none_leaves_ours(asked: str, server: StandIn, tmp_path: Path) -> None:
    server.script = {TEXTS[0]: [status(503, Retry_After=asked)] * 3}
    time = Time()
    assert whole(ask(server, tmp_path / "t.jsonl", time), tmp_path / "t.jsonl")
    assert all(0.25 <= wait <= 2 for wait in time.waits)


def test_waits_grow_and_end_with_the_patience(server: StandIn, tmp_path: Path) -> None:
    server.script = {TEXTS[0]: [status(503, "loading")] * 1000}
    time = Time()
    with pytest.raises(AwayError, match="HTTP 503: loading") as raised:
        ask(server, tmp_path / "t.jsonl", time, concurrency=1, patience=200.0)
    assert time.now == 200
    assert 0.25 <= time.waits[0] <= 0.5 and all(earlier < later for earlier, later in zip(time.waits[:6], time.waits[1:7], strict=True))
    assert max(time.waits) <= 30
    assert "What is finished is kept; run the same command again to resume" in str(raised.value) and "\n" not in str(raised.value)


def test_a_wait_beyond_the_patience_is_not_begun(server: StandIn, tmp_path: Path) -> None:
    server.script = {TEXTS[0]: [status(429, "full", Retry_After="3600")]}
    time = Time()
    with pytest.raises(AwayError, match="asks to wait 3600 s"):
        ask(server, tmp_path / "t.jsonl", time)
    assert time.waits == []


def test_an_answer_to_anybody_shows_that_the_server_is_there(server: StandIn, tmp_path: Path) -> None:
    """Patience is for a server that is away, not for the sum of its stumbles."""
    server.script = {text: [status(500)] * 4 for text in TEXTS}
    time = Time()
    assert whole(ask(server, tmp_path / "t.jsonl", time, concurrency=1, patience=8.0), tmp_path / "t.jsonl")
    assert time.now > 8 * 2


def test_a_server_that_is_away_for_too_long_loses_nothing_and_the_same_call_goes_on(server: StandIn, tmp_path: Path) -> None:
    server.script = {text: [status(502)] * 1000 for text in TEXTS[6:]}
    with pytest.raises(AwayError):
        ask(server, tmp_path / "t.jsonl", concurrency=1)
    kept = {t.prompt for t in read(tmp_path / "t.jsonl")}
    assert kept == set(TEXTS[:6])
    server.script, server.asked = {}, []
    assert whole(ask(server, tmp_path / "t.jsonl"), tmp_path / "t.jsonl")
    assert sorted(server.prompts_asked()) == sorted(TEXTS[6:])


def test_a_server_that_dies_and_comes_back_is_asked_for_the_rest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with running(StandIn()) as first:
        back: list[StandIn] = []
        ending = []

        def come_back(number: int) -> None:
            if number == 12:
                back.append(StandIn(first.server_address[1]))
                ending.append(running(back[0]))
                ending[0].__enter__()

        first.script = {TEXTS[5]: [first.die]}
        made = ask(first, tmp_path / "t.jsonl", Time(come_back), patience=1e6)
        ending[0].__exit__(None, None, None)
    assert whole(made, tmp_path / "t.jsonl")
    assert TEXTS[5] in back[0].prompts_asked() and len(back[0].prompts_asked()) < len(TEXTS)
    assert capfd.readouterr().err.count("retrying for up to 1e+06 s") == 1


def test_no_server_at_all_is_said_in_one_line(tmp_path: Path) -> None:
    with running(StandIn()) as gone:
        pass
    with pytest.raises(AwayError, match="no connection") as raised:
        ask(gone, tmp_path / "t.jsonl")
    assert gone.url in str(raised.value) and not (tmp_path / "t.jsonl").exists()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (status(400, "This model's maximum context length is 512 tokens."), "HTTP 400: This model's maximum context length is 512 tokens."),
        (status(404, {"error": "model 'tiny' not found"}), "HTTP 404: model 'tiny' not found"),
        (status(422, {"detail": [{"loc": ["body"], "msg": "no"}]}), 'HTTP 422: [{"loc": ["body"], "msg": "no"}]'),
        (status(413, {"message": "too\n\x1b[31mlarge\n"}), "HTTP 413: too [31mlarge"),
        (lambda r: r.send(418, b"<html>" + b"x" * 5000), "HTTP 418: <html>xxx"),
        (lambda r: r.send(403, b""), "HTTP 403: Forbidden; set ABLITERATE_API_KEY"),
    ],
    ids=["context", "model", "detail", "escapes", "long", "forbidden"],
)
def test_a_refusal_is_one_line_with_the_servers_words_and_the_prompt(answer: Action, says: str, server: StandIn, tmp_path: Path) -> None:
    server.script = {TEXTS[8]: [answer]}
    with pytest.raises(InputError) as raised:
        ask(server, tmp_path / "t.jsonl", concurrency=1)
    line = str(raised.value)
    assert says in line and "prompt 'p3' of 'two'" in line and "\n" not in line and "\x1b" not in line and len(line) < 500
    assert {t.prompt for t in read(tmp_path / "t.jsonl")} == set(TEXTS[:8])
    assert server.tries[TEXTS[8]] == 0


def test_answers_that_never_have_the_shape_end_after_a_few_tries(server: StandIn, tmp_path: Path) -> None:
    server.script = {TEXTS[0]: [body({"text": "hello"})] * 100}
    with pytest.raises(InputError, match="not a reply in OpenAI's format"):
        ask(server, tmp_path / "t.jsonl")
    assert server.tries[TEXTS[0]] == 4


def test_a_redirect_is_not_followed(server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN, KEY)
    with running(StandIn()) as other:
        server.script = {TEXTS[0]: [lambda r: r.send(307, b"", Location=other.url + "/chat/completions")]}
        with pytest.raises(InputError, match=r"redirects to 127\.0\.0\.1, and redirects are not followed"):
            ask(server, tmp_path / "t.jsonl")
        assert other.asked == []


@pytest.mark.parametrize("both", [False, True])
def test_the_key_comes_from_the_environment_and_goes_to_the_server_alone(
    both: bool, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OWN, f" {KEY}\n")
    if both:
        monkeypatch.setenv(OPENAI, "other")
    assert whole(ask(server, tmp_path / "t.jsonl"), tmp_path / "t.jsonl")
    assert {headers["authorization"] for _, _, headers in lowered(server)} == {f"Bearer {KEY}"}


def lowered(server: StandIn) -> list[tuple[str, dict[str, Any], dict[str, str]]]:
    return [(path, asked, {name.lower(): value for name, value in headers.items()}) for path, asked, headers in server.asked]


def test_openais_key_goes_to_no_other_server(server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPENAI, KEY)
    server.script = {TEXTS[0]: [status(401, "who are you?")]}
    with pytest.raises(InputError, match=r"set ABLITERATE_API_KEY to the server's key \(OPENAI_API_KEY is sent only to api\.openai\.com\)"):
        ask(server, tmp_path / "t.jsonl")
    assert server.asked and not any("authorization" in headers for _, _, headers in lowered(server))


@pytest.mark.parametrize(
    ("url", "is_openais"),
    [
        ("https://api.openai.com/v1", True),
        ("https://api.openai.com:443/v1", True),
        ("https://API.OpenAI.com/v1", True),
        ("http://api.openai.com/v1", False),
        ("https://api.openai.com:8443/v1", False),
        ("https://api.openai.com.evil.example/v1", False),
        ("https://evil.example/api.openai.com/v1", False),
        ("https://api-openai.com/v1", False),
        ("https://openai.com/v1", False),
        ("http://localhost:8000/v1", False),
    ],
)
def test_openais_own_host_is_that_one_alone_and_over_tls(url: str, is_openais: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPENAI, KEY)
    assert key_for(url) == (KEY if is_openais else None)
    monkeypatch.setenv(OWN, "the user's own")
    assert key_for(url) == "the user's own"


def test_a_key_that_the_server_repeats_stays_out_of_the_replies(server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN, KEY)
    server.answers = lambda prompt: completion(f"You sent Bearer {KEY}.")
    assert {t.response for t in ask(server, tmp_path / "t.jsonl")} == {"You sent Bearer ***."}
    assert KEY not in (tmp_path / "t.jsonl").read_text()


def test_a_key_that_is_a_word_spoils_no_reply(server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN, "EMPTY")
    server.answers = lambda prompt: completion("The set is EMPTY.")
    assert {t.response for t in ask(server, tmp_path / "t.jsonl")} == {"The set is EMPTY."}


def endless(request: Handler) -> None:
    """A reply that says of no length and has no end."""
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    while not request.server.closing.is_set():
        request.wfile.write(b"10000\r\n" + b" " * 2**16 + b"\r\n")


def claims_more(request: Handler) -> None:
    """Ten times as long as any reply, and begun."""
    request.send_response(200)
    request.send_header("Content-Length", str(10 * LONGEST))
    request.end_headers()
    for _ in range(2 * LONGEST // 2**16):
        request.wfile.write(b" " * 2**16)
    request.server.closing.wait(PATIENT)


@pytest.mark.parametrize("answer", [endless, claims_more])
def test_a_reply_without_end_is_not_read_on(answer: Action, server: StandIn, tmp_path: Path) -> None:
    server.script = {TEXTS[0]: [answer]}
    with pytest.raises(InputError, match="longer than 16 MiB"):
        ask(server, tmp_path / "t.jsonl")


def test_a_list_of_models_without_end_is_not_read_on(server: StandIn) -> None:
    server.models = endless
    with pytest.raises(RefusedError, match=r"/models: the reply is longer than 16 MiB"):
        asyncio.run(listed(Server(server.url)))


def test_of_an_endless_error_only_the_beginning_is_read(server: StandIn, tmp_path: Path) -> None:
    def fail(request: Handler) -> None:
        request.send_response(400)
        request.send_header("Content-Length", str(10 * LONGEST))
        request.end_headers()
        request.wfile.write(b"no! " * 2**18)
        request.server.closing.wait(PATIENT)

    server.script = {TEXTS[0]: [fail]}
    with pytest.raises(InputError, match="HTTP 400: no! no!"):
        ask(server, tmp_path / "t.jsonl")


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br"])
def test_nothing_is_unpacked(encoding: str, server: StandIn, tmp_path: Path) -> None:
    """Sixteen megabytes of zeros are sixteen kilobytes in gzip."""
    bomb = gzip.compress(bytes(2**24))
    server.script = {TEXTS[0]: [lambda request: request.send(200, bomb, Content_Encoding=encoding)]}
    with pytest.raises(InputError, match=f"compressed \\({encoding}\\), which was not requested"):
        ask(server, tmp_path / "t.jsonl")
    assert {headers["accept-encoding"] for _, _, headers in lowered(server)} == {"identity"}


def test_without_a_key_none_is_sent(server: StandIn, tmp_path: Path) -> None:
    ask(server, tmp_path / "t.jsonl")
    assert not any("authorization" in headers for _, _, headers in lowered(server))


def test_a_key_that_the_server_repeats_stays_out_of_the_message(server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN, KEY)
    server.script = {TEXTS[0]: [status(401, f"Incorrect API key provided: {KEY}.")]}
    with pytest.raises(InputError) as raised:
        ask(server, tmp_path / "t.jsonl")
    assert KEY not in str(raised.value) and "Incorrect API key provided: ***." in str(raised.value)


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel"])
def test_a_key_that_can_not_be_sent_is_refused_without_being_shown(
    key: str, server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OWN, key)
    with pytest.raises(InputError, match="ABLITERATE_API_KEY") as raised:
        ask(server, tmp_path / "t.jsonl")
    assert key not in str(raised.value) and server.asked == []


def test_a_certificate_that_is_not_trusted_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl

    import httpx2

    async def fail(*args: object, **options: object) -> None:
        raise httpx2.ConnectError("[SSL] failed") from ssl.SSLCertVerificationError("self-signed certificate")

    monkeypatch.setattr(httpx2.AsyncClient, "send", fail)
    with pytest.raises(RefusedError, match="certificate is not trusted"):
        asyncio.run(listed(Server("https://127.0.0.1:1/v1")))


def test_a_host_that_can_not_be_one_is_refused() -> None:
    with pytest.raises(RefusedError, match="not a valid URL"):
        asyncio.run(listed(Server("http://exa\x01mple/v1")))


async def listed(server: Server) -> object:
    async with server.connected() as line:
        return await line.call("/models", None, lambda answer: answer)


REPLIES: dict[str, tuple[dict[str, Any], str, str, str | None]] = {
    # message and end, response, outcome, thought
    "an answer": (completion("It is Paris."), "It is Paris.", "answered", None),
    "null": (completion(None), "", "deflected", None),
    "reasoning_content": (
        completion("It is Paris.", reasoning_content="France."),
        "<think>\nFrance.\n</think>\n\nIt is Paris.",
        "answered",
        "answered",
    ),
    "reasoning": (completion("It is Paris.", reasoning="France."), "<think>\nFrance.\n</think>\n\nIt is Paris.", "answered", "answered"),
    "null reasoning": (completion("It is Paris.", reasoning=None, reasoning_content=None), "It is Paris.", "answered", None),
    "a thought that was cut": (completion(None, "length", reasoning="France, so"), "<think>\nFrance, so", "truncated", "answered"),
    "a thought that was cut, and spaces": (completion("\n\n", "length", reasoning="So"), "<think>\nSo", "truncated", "answered"),
    "a thought and no answer": (completion(None, reasoning="So."), "<think>\nSo.\n</think>\n\n", "deflected", "answered"),
    "an answer that was cut": (completion("It is", "length", reasoning="So."), "<think>\nSo.\n</think>\n\nIt is", "answered", "answered"),
    "nothing in all its tokens": (completion("", "length"), "", "degenerate", None),
    "its own marks": (completion("<think>So.</think>It is Paris."), "<think>So.</think>It is Paris.", "answered", "answered"),
    "a refusal of its own": (
        completion(None, refusal="I'm sorry, I can't help with that."),
        "I'm sorry, I can't help with that.",
        "refused",
        None,
    ),
}


@pytest.mark.parametrize(("answer", "response", "outcome", "thought"), REPLIES.values(), ids=REPLIES)
def test_thought_and_answer_are_told_apart(answer: dict[str, Any], response: str, outcome: str, thought: str | None) -> None:
    reply = reply_of(answer)
    assert reply.text == response
    verdict = Transcript("s", "1", "Where is the Louvre?", reply.text, begins_in_thought=False, cut=reply.cut).verdict()
    assert (verdict.outcome, verdict.thought) == (outcome, thought)


def test_a_template_that_opens_the_thought_counts_where_the_server_did_not_take_it_out(server: StandIn, tmp_path: Path) -> None:
    answers = {
        TEXTS[0]: completion("So it is"),
        TEXTS[1]: completion("Paris.", reasoning="So."),
        TEXTS[2]: completion("Paris.", reasoning_content=""),
    }
    server.answers = lambda prompt: answers.get(prompt, completion("So.</think>Paris."))
    there = Server(server.url)
    made = Asking(there, Served("tiny"), 16, opens_thought=True).answer(SETS, tmp_path / "t.jsonl")
    assert [t.verdict().outcome for t in made[:4]] == ["truncated", "answered", "answered", "answered"]


@pytest.mark.parametrize("usage", [{}, {"completion_tokens": None}, {"completion_tokens": -1}, {"completion_tokens": "9"}, None, 7])
def test_a_count_of_tokens_that_is_none_is_left_out(usage: Any) -> None:
    assert reply_of({**completion("x"), "usage": usage}).new_tokens == 0


def test_any_text_comes_through(server: StandIn, tmp_path: Path) -> None:
    hostile = "\ud800 lone, \u2028 separated, 你好\r\n\x00"
    server.answers = lambda prompt: completion(prompt)
    asked = [PromptSet("s", (Prompt("1", hostile), Prompt("2", "plain")))]
    made = Asking(Server(server.url), Served("tiny"), 16).answer(asked, tmp_path / "t.jsonl")
    assert made[0].response == hostile and read(tmp_path / "t.jsonl") == sorted(made, key=lambda t: read(tmp_path / "t.jsonl").index(t))


def test_a_file_cut_anywhere_is_gone_on_with(server: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    ask(server, path)
    data = path.read_bytes()
    for length in (0, 1, *(len(data) * i // 7 for i in range(1, 7)), len(data) - 1, len(data)):
        path.write_bytes(data[:length])
        server.asked = []
        assert whole(ask(server, path), path)
        assert len(server.prompts_asked()) == len(TEXTS) - data[:length].count(b"\n")


def test_a_file_with_strangers_and_doubles_holds_each_wanted_reply_once(server: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    first = ask(server, path)
    append(path, [Transcript("three", "p0", "Who?", "me"), *first[:3]])
    server.asked = []
    assert whole(ask(server, path), path) and server.asked == []


def test_an_interrupt_keeps_all_that_has_come(server: StandIn, tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        if done and read(tmp_path / "t.jsonl"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(server, tmp_path / "t.jsonl", advance=interrupt)
    assert read(tmp_path / "t.jsonl")
    assert whole(ask(server, tmp_path / "t.jsonl"), tmp_path / "t.jsonl")


class Slow(Server):
    """A server that answers in the same moment: the first prompt is refused, the last answered only when nobody waits for it any more."""

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Any]:
        yield self

    async def call(self, path: str, asked: dict[str, Any], read: Callable[[Any], Reply]) -> Reply:
        prompt = asked["messages"][0]["content"]
        if prompt == TEXTS[0]:
            raise RefusedError(400, "no")
        if prompt == TEXTS[4]:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return read(completion(f"reply to {prompt}"))


def test_replies_that_come_together_with_a_refusal_or_after_it_are_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no"):
        Asking(Slow("http://nowhere"), Served("tiny"), 16).answer(SETS[:1], tmp_path / "t.jsonl")
    assert sorted(t.prompt for t in read(tmp_path / "t.jsonl")) == TEXTS[1:5]


CHILD = """
import sys
from pathlib import Path
from abliterate.replies.asking import Asking
from abliterate.replies.served import Served
from abliterate.replies.server import Server
from abliterate.prompts import Prompt, PromptSet
sets = [PromptSet("s", tuple(Prompt(f"p{n}", f"Question {n}") for n in range(40)))]
Asking(Server(sys.argv[1], 4), Served("tiny"), 16).answer(sets, Path(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_a_killed_process_goes_on_with_what_is_on_disk(number: signal.Signals, server: StandIn, tmp_path: Path) -> None:
    sets = [PromptSet("s", tuple(Prompt(f"p{n}", f"Question {n}") for n in range(40)))]
    started, children = threading.Event(), []

    def kill(request: Handler) -> None:
        assert started.wait(PATIENT)
        os.kill(children[0].pid, number)
        server.closing.wait(PATIENT)  # the child is never answered

    path, last = tmp_path / "t.jsonl", "Question 25"
    server.script = {last: [kill]}
    children.append(
        subprocess.Popen(
            [sys.executable, "-c", CHILD, server.url, str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
        )
    )
    started.set()
    assert children[0].wait(PATIENT) != 0
    children[0].stderr.close()
    kept = {t.prompt for t in read(path)}
    assert kept and last not in kept
    server.asked = []
    made = Asking(Server(server.url), Served("tiny"), 16).answer(sets, path)
    assert [t.prompt for t in made] == [f"Question {n}" for n in range(40)]
    assert sorted(json.loads(line)["id"] for line in path.read_bytes().splitlines()) == sorted(f"p{n}" for n in range(40))
    assert set(server.prompts_asked()) == {t.prompt for t in made} - kept
