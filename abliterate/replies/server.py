"""A server with OpenAI's HTTP API: failed requests are retried until the server has been away for too long."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from abliterate.errors import InputError, first_line
from abliterate.files import Json
from abliterate.replies.api_key import HIDDEN, how_to_give, key_for, without_key
from abliterate.terminal.progress import say

T = TypeVar("T")
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds between two tries; doubles with each try
_CONNECT = 30.0  # seconds to connect
_SHAPELESS = 5  # tries of a request whose reply is not in the expected format
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
LONGEST = 16 * 2**20  # bytes of a reply; no model writes a longer text
_LONGEST_MESSAGE = 2**16  # bytes of an error message


@dataclass(frozen=True)
class Server:
    """The address of a server, and how long to wait for it.

    ``request_timeout``: seconds for one request, until the whole reply has arrived. ``patience``: seconds that the server may stay away,
    from the first failed request to the next successful one. ``sleep`` and ``clock`` (in seconds): the source of time.
    """

    url: str
    concurrency: int = 16
    request_timeout: float = 600.0
    patience: float = 600.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Line]:
        """An open connection to the server. Redirects are not followed, so that only this server gets the key. Replies must not be
        compressed, so that their length is known while they arrive."""
        key = key_for(self.url)
        asked = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        async with httpx2.AsyncClient(
            headers={**asked, **({"Authorization": f"Bearer {key}"} if key else {})},
            timeout=httpx2.Timeout(None, connect=min(_CONNECT, self.request_timeout)),
            limits=httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency),
            trust_env=urlsplit(self.url).hostname not in _LOOPBACK,  # a proxy can't reach a local server
        ) as http:
            yield Line(self, http, key)


class AwayError(InputError):
    """The server stayed away for longer than its ``patience``."""


class RefusedError(InputError):
    """An error that a retry can't change; ``status`` is the HTTP status."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


class _PassingError(Exception):
    """A temporary error; ``wait``: seconds that the server asks to wait."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def passes(status: int) -> bool:
    """Whether an HTTP status means a temporary error."""
    return status in (408, 409, 425, 429) or status >= 500


class Line:
    """An open connection to a server, for many requests at once."""

    def __init__(self, server: Server, http: httpx2.AsyncClient, key: str | None) -> None:
        self._server, self._http, self._key = server, http, key
        self._away_since: float | None = None
        self._said = False

    async def call(self, path: str, body: Json | None, read: Callable[[Any], T], again: Callable[[int], bool] = passes) -> T:
        """GET, or POST if there is a body, and ``read`` the JSON of the reply (which raises ValueError if it is not as expected).

        ``again``: which HTTP statuses are retried. Raises RefusedError if a retry can't help, AwayError when patience ends.
        """
        shapeless = tries = 0
        while True:
            try:
                answer = await self._once(path, body, again)
                found = read(json.loads(answer))
            except _PassingError as passing:
                fault = passing
            except (ValueError, RecursionError) as error:
                fault = _PassingError(f"not a reply in OpenAI's format ({self._clean(error)})")
                shapeless += 1
                if shapeless == _SHAPELESS:
                    raise RefusedError(200, f"{self._server.url}{path}: {fault}") from None
            else:
                self._away_since, self._said = None, False
                return found
            await self._wait(fault, tries)
            tries += 1

    async def _once(self, path: str, body: Json | None, again: Callable[[int], bool]) -> bytes:
        """The body of a successful reply. The time limit covers all of it, so that a slow server can't block a slot forever."""
        limit = self._server.request_timeout
        method, content = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
        try:
            async with asyncio.timeout(limit), self._http.stream(method, self._server.url + path, content=content) as response:
                answer = without_key(await self._read(path, response), self._key)
        except TimeoutError:
            raise _PassingError(f"no complete reply within {limit:g} s; see --request-timeout and --concurrency") from None
        except httpx2.InvalidURL as error:
            raise RefusedError(0, f"{self._server.url}: not a valid URL ({self._clean(error)})") from None
        except httpx2.RequestError as error:
            if _certificate_fails(error):
                raise RefusedError(0, f"{self._server.url}: its certificate is not trusted ({self._clean(error)})") from None
            raise _PassingError(_kind_of(error)) from None
        if response.is_success:
            return answer
        said = self._message(answer) or response.reason_phrase
        if again(response.status_code):
            raise _PassingError(f"HTTP {response.status_code}: {said}", self._asked_wait(response))
        raise RefusedError(response.status_code, self._refusal(path, response, said))

    async def _read(self, path: str, response: httpx2.Response) -> bytes:
        """The body of a reply, or the beginning of an error message. Raises RefusedError if a reply is too long or compressed."""
        good, where = response.is_success, f"{self._server.url}{path}"
        packed = response.headers.get("content-encoding", "identity").strip().lower()
        if packed not in ("", "identity"):
            if good:
                raise RefusedError(response.status_code, f"{where}: reply is compressed ({self._clean(packed)}), which was not requested")
            return b""
        longest, body = LONGEST if good else _LONGEST_MESSAGE, bytearray()
        async with aclosing(response.aiter_raw()) as parts:
            async for part in parts:
                body += part
                if len(body) > longest:
                    break
        if good and len(body) > longest:
            raise RefusedError(response.status_code, f"{where}: the reply is longer than {longest // 2**20} MiB; reading stopped there")
        return bytes(body[:longest])

    async def _wait(self, fault: _PassingError, tries: int) -> None:
        """Sleep until the next try: longer each time, with random jitter, or as long as the server asks for."""
        server, now = self._server, self._server.clock()
        if self._away_since is None:
            self._away_since = now
        left = self._away_since + server.patience - now
        longest = min(_FIRST_WAIT * 2 ** min(tries, 30), _LONGEST_WAIT)
        wait = max(min(random.uniform(longest / 2, longest), left), fault.wait or 0.0)
        if left <= 0 or wait > left:
            asked = "" if not fault.wait else f", and the server asks to wait {fault.wait:g} s"
            raise AwayError(
                f"{server.url}: {fault}{asked}; gave up after the {server.patience:g} s that --patience allows. "
                "What is finished is kept; run the same command again to resume"
            )
        if tries == 2 and not self._said:
            self._said = True
            say(f"{server.url}: {fault}; retrying for up to {server.patience:g} s")
        await server.sleep(wait)

    def _asked_wait(self, response: httpx2.Response) -> float | None:
        """``Retry-After`` in seconds; the header holds a number or a date."""
        given = response.headers.get("retry-after", "").strip()
        if given.isascii() and given.isdigit():
            return float(given[:9])
        try:
            return max(0.0, (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError, OverflowError):
            return None

    def _refusal(self, path: str, response: httpx2.Response, said: str) -> str:
        status = response.status_code
        where = f"{self._server.url}{path}"
        if status in (401, 403):
            return f"{where}: HTTP {status}: {said}; {how_to_give(self._server.url)}"
        if response.is_redirect:
            host = urlsplit(response.headers.get("location", "")).hostname
            return f"{where}: it redirects{f' to {host}' if host else ''}, and redirects are not followed; give the final URL"
        hint = "; is /v1 missing from the URL?" if status == 404 and not urlsplit(self._server.url).path else ""
        return f"{where}: HTTP {status}: {said}{hint}"

    def _message(self, body: bytes) -> str:
        """The server's error message, as one short line."""
        said: Any = body.decode("utf-8", "replace")
        try:
            said = json.loads(body)
            for key in ("error", "message", "detail"):  # {"error": {"message": ...}}, {"error": ...}, {"message": ...}, {"detail": ...}
                said = said.get(key, said) if isinstance(said, dict) else said
        except (ValueError, RecursionError):
            pass
        return self._clean(said if isinstance(said, str) else json.dumps(said))

    def _clean(self, said: object) -> str:
        """A text from outside as one short line, without control characters and without our key."""
        text = str(said).replace(self._key, HIDDEN) if self._key else str(said)
        return " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split())[:200]


def _certificate_fails(error: BaseException) -> bool:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes)


def _kind_of(error: httpx2.RequestError) -> str:
    kinds: dict[type[httpx2.RequestError], str] = {httpx2.ConnectError: "no connection", httpx2.ConnectTimeout: "no connection"}
    return f"{kinds.get(type(error), 'the connection was cut')} ({first_line(error)})"
