"""A server on this computer that speaks OpenAI's protocol as it is told to, and time that passes only when it is slept through."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PATIENT = 60.0  # seconds that a test waits for what must come at once; only a broken one ever does


class Handler(BaseHTTPRequestHandler):
    """A request, handed to the stand-in that it was sent to."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: StandIn

    def do_GET(self) -> None:
        self.content: dict[str, Any] = {}
        self.server.took(self, self.server.models)

    def do_POST(self) -> None:
        self.content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.took(self, self.server.probed if self.content["max_tokens"] == 1 else self.server.next_for(self.prompt))

    @property
    def prompt(self) -> str:
        return str(self.content["messages"][0]["content"])

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError):  # the client has gone
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""

    def send(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def hang_up(self) -> None:
        self.close_connection = True


Action = Callable[[Handler], None]


def completion(content: str | None, finish: str = "stop", tokens: int = 3, asked: int = 0, **message: Any) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}],
        "usage": {"prompt_tokens": asked, "completion_tokens": tokens, "total_tokens": asked + tokens},
    }


def status(code: int, message: Any = "not now", **headers: str) -> Action:
    return lambda request: request.send(code, {"error": {"message": message}} if isinstance(message, str) else message, **headers)


def body(content: Any) -> Action:
    return lambda request: request.send(200, content)


def cut(request: Handler) -> None:
    """Half an answer, then nothing more."""
    data = json.dumps(completion("never whole")).encode()
    request.send_response(200)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data[: len(data) // 2])
    request.hang_up()


def silent(request: Handler) -> None:
    """The connection is closed without a word."""
    request.hang_up()


def dribble(request: Handler) -> None:
    """A byte now and then, for as long as anybody listens: no single wait is long."""
    request.send_response(200)
    request.send_header("Content-Length", "1000000")
    request.end_headers()
    gone = request.server.closing
    while not gone.wait(0.005):
        request.wfile.write(b" ")


class StandIn(ThreadingHTTPServer):
    """``script``: what is done at each try of a prompt, before it is answered. ``asked``: (path, body, headers) of every request."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128  # a busy machine accepts late, and none of a test's clients may be turned away

    def __init__(self, port: int = 0, cards: Sequence[dict[str, Any]] = ({"id": "tiny"},)) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.cards = list(cards)
        self.script: dict[str, list[Action]] = {}
        self.tries: dict[str, int] = {}
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.answers: Callable[[str], dict[str, Any]] = lambda prompt: completion(f"reply to {prompt}")
        self.models: Action = lambda request: request.send(200, {"object": "list", "data": self.cards})
        self.knows: Callable[[str], bool] = lambda model: True
        self.counts: Callable[[str], int] = lambda prompt: len(prompt.split())  # the tokens of a prompt
        self.strict = False
        self.lock, self.closing = threading.Lock(), threading.Event()

    def took(self, request: Handler, action: Action) -> None:
        """A request has come: it is noted and dealt with, or nobody is there any more."""
        with self.lock:
            self.asked.append((request.path, request.content, dict(request.headers)))
        (silent if self.closing.is_set() else action)(request)

    def next_for(self, prompt: str) -> Action:
        with self.lock:
            tries = self.tries[prompt] = self.tries.get(prompt, -1) + 1
            script = self.script.get(prompt, ())
            return script[tries] if tries < len(script) else self.reply

    def reply(self, request: Handler) -> None:
        request.send(200, self.answers(request.prompt))

    def probed(self, request: Handler) -> None:
        """A request for one token: refused for a model that isn't known, or for a field that OpenAI's protocol doesn't have."""
        model = request.content["model"]
        if not self.knows(model):
            status(404, f"The model `{model}` does not exist.")(request)
        elif self.strict and "repetition_penalty" in request.content:
            status(422, {"detail": "Unexpected fields in the request: {'repetition_penalty'}"})(request)
        else:
            request.send(200, completion("H", "length", 1, self.counts(request.prompt)))

    def die(self, request: Handler | None = None) -> None:
        """Nobody listens any more, and who is connected already hears nothing."""
        self.closing.set()
        self.shutdown()
        self.server_close()
        if request is not None:
            request.hang_up()

    def prompts_asked(self) -> list[str]:
        """Prompts of the requests for whole replies, in the order in which they came."""
        with self.lock:
            return [asked["messages"][0]["content"] for _, asked, _ in self.asked if asked and asked["max_tokens"] > 1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


@contextmanager
def running(server: StandIn) -> Iterator[StandIn]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.die()
        thread.join()


class Time:
    """Seconds that pass when they are slept through, and not otherwise; ``then`` is done at each sleep."""

    def __init__(self, then: Callable[[int], None] = lambda number: None) -> None:
        self.now, self.waits, self._then = 0.0, list[float](), then

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        self._then(len(self.waits))
        await asyncio.sleep(0)

    def clock(self) -> float:
        return self.now


@contextmanager
def transformers_serve(folder: Path) -> Iterator[str]:
    """The URL of a real server that loads what it is asked for. It is not waited for here: whoever asks does so."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with (folder / "serve.log").open("wb") as log:
        serve = [sys.executable, "-m", "transformers.cli.transformers", "serve", *options]
        process = subprocess.Popen(serve, stdout=log, stderr=log, cwd=folder, env=environment)
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()
            process.wait()
