"""An application on a free port of this machine, for as long as a test needs it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp

from bot.localhub.app import Connections, Server


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Scheme, host and port."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        server = Server(app, Connections())
        server.start([listening])
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.stop()
