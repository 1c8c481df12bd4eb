"""The part of the Hub's HTTP API that an upload needs, on this computer: repositories, LFS objects in parts, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_standin"
PART = 1 << 14  # bytes of a part


class Handler(BaseHTTPRequestHandler):
    """A request; its answer is the stand-in's."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hub

    def _took(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while count := int(self.rfile.readline(), 16):
                data += self.rfile.read(count)
                self.rfile.readline()
            self.rfile.readline()
        status, content, headers = self.server.answered(self.command, self.path, data, self.headers.get("Authorization"))
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._took()

    def do_POST(self) -> None:
        self._took()

    def do_PUT(self) -> None:
        self._took()

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""


Answer = tuple[int, Any, dict[str, str]]


class Hub(ThreadingHTTPServer):
    """``repos``: content by path of each repository; ``visible``: its visibility; ``asked``: (method, path) of every request.

    ``xet``: a folder that takes the objects of an upload in chunks (Xet), of which commits then name the SHA-256.
    ``fault``: an answer instead of the usual one to a request that it is told of (method, path), or None.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.visible: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.xet = Path()
        self.commits = 0
        self.fault: Callable[[str, str], Answer | None] = lambda method, path: None
        self.lock = threading.Lock()

    def answered(self, method: str, path: str, data: bytes, authorised: str | None) -> Answer:
        with self.lock:
            self.asked.append((method, path))
            if (broken := self.fault(method, path)) is not None:
                return broken
            if not path.startswith(("/parts/", "/complete/")) and authorised != f"Bearer {TOKEN}":
                return 401, {"error": "Invalid credentials"}, {}
            for pattern, act in ROUTES:
                if match := re.fullmatch(rf"{method[:4]} ?{pattern}", f"{method} {path}"):
                    return act(self, data, *match.groups())
        return 404, {"error": f"no such page: {method} {path}"}, {}

    def create(self, data: bytes) -> Answer:
        said = json.loads(data)
        repo = f"{said['organization']}/{said['name']}"
        if said["organization"] != "me":
            return 403, {"error": f"You don't have the rights to create a model under the namespace {said['organization']!r}"}, {}
        if repo in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}, {}
        self.repos[repo], self.visible[repo] = {}, said.get("visibility") or ("private" if said.get("private") else "public")
        return 200, {"url": f"{self.url}/{repo}", "name": repo}, {}

    def info(self, data: bytes, repo: str) -> Answer:
        if repo not in self.repos:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        return (
            200,
            {"id": repo, "modelId": repo, "private": self.visible[repo] != "public", "sha": "0" * 40, "siblings": [], "tags": []},
            {},
        )

    def yaml(self, data: bytes) -> Answer:
        return 200, {"errors": [], "warnings": []}, {}

    def modes(self, data: bytes, repo: str) -> Answer:
        def one(file: dict[str, Any]) -> dict[str, Any]:
            large = file["path"].endswith((".safetensors", ".plan"))
            there = self.repos[repo].get(file["path"])
            oid = None
            if there is not None:
                git = hashlib.sha1(b"blob %d\0" % len(there) + there).hexdigest()
                oid = hashlib.sha256(there).hexdigest() if large else git
            return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

        return 200, {"files": [one(file) for file in json.loads(data)["files"]]}, {}

    def batch(self, data: bytes, repo: str) -> Answer:
        def one(wanted: dict[str, Any]) -> dict[str, Any]:
            oid, size = wanted["oid"], wanted["size"]
            if oid in self.objects:
                return {"oid": oid, "size": size}
            parts = {str(n + 1): f"{self.url}/parts/{oid}/{n + 1}" for n in range(math.ceil(size / PART))}
            upload = {"href": f"{self.url}/complete/{oid}", "header": {"chunk_size": str(PART), **parts}}
            if size <= PART:
                upload = {"href": f"{self.url}/parts/{oid}/0"}
            return {"oid": oid, "size": size, "actions": {"upload": upload}}

        return 200, {"transfer": "multipart", "objects": [one(wanted) for wanted in json.loads(data)["objects"]]}, {}

    def part(self, data: bytes, oid: str, number: str) -> Answer:
        if number == "0":
            return self._store(oid, data)
        self.parts[oid, int(number)] = data
        return 200, {}, {"ETag": hashlib.md5(data).hexdigest()}

    def complete(self, data: bytes, oid: str) -> Answer:
        return self._store(oid, b"".join(self.parts[oid, part["partNumber"]] for part in json.loads(data)["parts"]))

    def _store(self, oid: str, data: bytes) -> Answer:
        if hashlib.sha256(data).hexdigest() != oid:
            return 400, {"error": "the object is not what its name says"}, {}
        self.objects[oid] = data
        return 200, {}, {}

    def commit(self, data: bytes, repo: str) -> Answer:
        for line in data.splitlines():
            said = json.loads(line)
            if said["key"] == "file":
                self.repos[repo][said["value"]["path"]] = base64.b64decode(said["value"]["content"])
            elif said["key"] == "lfsFile":
                self.repos[repo][said["value"]["path"]] = self.objects.get(said["value"]["oid"], said["value"]["oid"].encode())
        self.commits += 1
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{self.commits:040x}", "commitOid": f"{self.commits:040x}"}, {}

    def chunk_store(self, data: bytes, repo: str) -> Answer:
        """Where chunks go: the client keeps them in a folder itself, where it is told of one."""
        return 200, {"accessToken": "none", "exp": int(time.time()) + 3600, "casUrl": f"local://{self.xet}"}, {}

    def sent_parts(self) -> list[str]:
        """The objects whose bytes came, a name a part."""
        return [path.split("/")[2] for method, path in self.asked if method == "PUT"]


_REPO = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, Callable[..., Answer]]] = [
    (r"/api/repos/create", Hub.create),
    (rf"/api/models/{_REPO}(?:/revision/main)?(?:\?.*)?", Hub.info),
    (r"/api/validate-yaml", Hub.yaml),
    (rf"/api/models/{_REPO}/preupload/main", Hub.modes),
    (rf"/{_REPO}\.git/info/lfs/objects/batch", Hub.batch),
    (r"/parts/(\w+)/(\d+)", Hub.part),
    (r"/complete/(\w+)", Hub.complete),
    (rf"/api/models/{_REPO}/commit/main", Hub.commit),
    (rf"/api/models/{_REPO}/xet-write-token/main", Hub.chunk_store),
]


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
