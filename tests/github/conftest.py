from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bot.records import Job
from tests.support.workspace import Workspace

HOOK_PATH = "/services/T000/B000/abcdefghijklmnop"  # a secret


@dataclass
class Hook:
    """A webhook on the loopback interface. waits: until this is set, it does not answer."""

    url: str = ""
    status: int = 200
    sent: list[dict[str, Any]] = field(default_factory=list)
    waits: threading.Event | None = None


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            made.sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if made.waits is not None:
                made.waits.wait(30)
            self.send_response(made.status)
            self.send_header("Location", "http://127.0.0.1:9/")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}{HOOK_PATH}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()


@pytest.fixture
def planned(workspace: Workspace) -> Job:
    """The one job of a plan."""
    workspace.seed("Tiny")
    workspace.plan()
    [job] = workspace.planned()
    return job
