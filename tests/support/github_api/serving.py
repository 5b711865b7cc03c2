"""Routes on a free port of this machine, for as long as a test needs them."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from starlette.applications import Starlette
from starlette.routing import Route

from bot.localhub.app import Connections, Server


@contextmanager
def served(routes: Sequence[Route]) -> Iterator[str]:
    """Scheme, host and port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(Starlette(routes=routes), Connections())
        server.start([listening])
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.stop()
