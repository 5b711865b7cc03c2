"""What every request passes through: the choice of application, injected faults, the request log."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bot.localhub.protocol import bad_request, timestamp

_KEPT = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """path: as sent, still quoted. status: 0 without a response. bytes_sent: of the body."""

    time: str
    host: Literal["hub", "files"]
    method: str
    path: str
    query: str
    status: int
    bytes_sent: int
    duration_s: float
    user: str | None
    authenticated: bool
    """Whether there was an Authorization header, valid or not."""
    range: str | None
    fault: bool


class RequestLog:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._records: deque[RequestRecord] = deque(maxlen=_KEPT)

    def add(self, record: RequestRecord) -> None:
        line = json.dumps(dataclasses.asdict(record))
        with self._lock:
            self._records.append(record)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    @property
    def records(self) -> tuple[RequestRecord, ...]:
        with self._lock:
            return tuple(self._records)

    def clear(self) -> None:
        """Drops the records in memory; the file stays."""
        with self._lock:
            self._records.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An injected failure of the next `times` matching requests, after the first `skip` of them.

    method, path: regular expressions; `method` matches the whole method, `path` any part of the path as sent,
    still quoted. times: None for all.
    """

    path: str = ""
    method: str = ".*"
    times: int | None = 1
    skip: int = 0
    delay_s: float = 0.0
    status: int | None = None
    """The response, in place of the real one."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with `status`, e.g. Retry-After."""
    body: str = ""
    cut_after_bytes: int | None = None
    """The connection closes after this many bytes of the response's body."""
    lose_answer: bool = False
    """The request is carried out, then the connection closes without a response."""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Fault:
        try:
            fault = cls(**fields)
            re.compile(fault.path)
            re.compile(fault.method)
        except (TypeError, re.error) as error:
            raise bad_request(f"Invalid fault: {error}") from None
        return fault

    def matches(self, method: str, path: str) -> bool:
        return re.fullmatch(self.method, method) is not None and re.search(self.path, path) is not None


class Faults:
    """Each fault counts the requests that it matched; of several that match, the first one added applies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: list[tuple[Fault, int]] = []

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._counts.append((fault, 0))

    def clear(self) -> None:
        with self._lock:
            self._counts.clear()

    @property
    def pending(self) -> tuple[Fault, ...]:
        """The faults that can still happen."""
        with self._lock:
            return tuple(fault for fault, seen in self._counts if _left(fault, seen))

    def take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for position, (fault, seen) in enumerate(self._counts):
                if _left(fault, seen) and fault.matches(method, path):
                    self._counts[position] = (fault, seen + 1)
                    if seen >= fault.skip:
                        return fault
        return None


def _left(fault: Fault, seen: int) -> bool:
    return fault.times is None or seen < fault.skip + fault.times


HangUp = Callable[[Scope], None]


class Middleware:
    """hang_up: closes the connection of a request."""

    def __init__(
        self, *, hub: ASGIApp, files: ASGIApp, files_port: int, faults: Faults, log: RequestLog, hang_up: HangUp
    ) -> None:
        self._apps: dict[Literal["hub", "files"], ASGIApp] = {"hub": hub, "files": files}
        self._files_port = files_port
        self._faults = faults
        self._log = log
        self._hang_up = hang_up

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        raw_path = scope["raw_path"].decode("ascii")
        # Routed as sent: `refs%2Fpr%2F1` is one segment of the path.
        scope = {**scope, "path": raw_path, "state": {"user": None}}
        host: Literal["hub", "files"] = "files" if scope["server"][1] == self._files_port else "hub"
        # Faults must not block the requests that remove them.
        fault = None if raw_path.startswith("/_local/") else self._faults.take(scope["method"], raw_path)
        has_body = scope["method"] != "HEAD"
        response = _Response(send, fault or Fault(), lambda: self._hang_up(scope), has_body=has_body)
        response.on_end = lambda: self._log.add(_record(scope, host, response, faulty=fault is not None))
        try:
            await self._respond(scope, receive, response, self._apps[host], fault or Fault())
        except asyncio.CancelledError:
            pass  # the server stops, and the client sees a closed connection
        finally:
            response.end()

    async def _respond(
        self, scope: Scope, receive: Receive, response: _Response, app: ASGIApp, fault: Fault
    ) -> None:
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        if fault.status is not None:
            await _drain(receive)
            app = PlainTextResponse(fault.body, status_code=fault.status, headers=dict(fault.headers))
        await app(scope, receive, response.send)
        if fault.lose_answer:
            response.end()
            response.hang_up()
            await asyncio.sleep(0)  # lets uvicorn see the closed connection, or it would send 500


async def _drain(receive: Receive) -> None:
    """A client that is still sending when the response arrives gets a broken pipe instead of it."""
    while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
        pass


class _Response:
    """Passes a response on, counts its bytes, and cuts it where the fault says."""

    def __init__(self, send: Send, fault: Fault, hang_up: Callable[[], None], *, has_body: bool) -> None:
        self._send = send
        self._has_body = has_body
        self._fault = fault
        self._closed = False
        self._ended = False
        self._head: Message | None = None
        self.hang_up = hang_up
        self.on_end: Callable[[], None] = lambda: None
        self.started = time.monotonic()
        self.status = 0
        self.bytes_sent = 0

    async def send(self, message: Message) -> None:
        if self._closed:
            return
        if message["type"] == "http.response.start":
            # Kept until the body, so that a response with an empty body is logged before it is sent.
            self.status, self._head = message["status"], message
            return
        if self._fault.lose_answer:
            return
        if message["type"] == "http.response.body":
            message = self._cut(message)
            self.bytes_sent += len(message.get("body", b"")) if self._has_body else 0
            if self._closed or not message.get("more_body", False):
                # Logged before the last byte is sent, so that a client with the response finds it in the log.
                self.end()
        if self._head is not None:
            head, self._head = self._head, None
            await self._send(head)
        await self._send(message)
        if self._closed:
            self.hang_up()

    def _cut(self, message: Message) -> Message:
        limit = self._fault.cut_after_bytes
        body = message.get("body", b"")
        if limit is None or self.bytes_sent + len(body) <= limit:
            return message
        self._closed = True
        return {**message, "body": body[: limit - self.bytes_sent], "more_body": True}

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self.on_end()


def _record(scope: Scope, host: Literal["hub", "files"], answer: _Response, *, faulty: bool) -> RequestRecord:
    headers = Headers(scope=scope)
    return RequestRecord(
        time=timestamp(),
        host=host,
        method=scope["method"],
        path=scope["path"],
        query=scope["query_string"].decode("latin-1"),
        status=answer.status,
        bytes_sent=answer.bytes_sent,
        duration_s=round(time.monotonic() - answer.started, 6),
        user=scope["state"]["user"],
        authenticated="authorization" in headers,
        range=headers.get("range"),
        fault=faulty,
    )
