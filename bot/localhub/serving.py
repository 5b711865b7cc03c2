"""uvicorn, with two things it lacks: stopping at once, and closing a connection on request."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

_START_TIMEOUT_S = 10.0
_UNFINISHED_REQUESTS_S = 1.0


class Connections:
    """Open connections by the client's address, because an ASGI application cannot close its own."""

    def __init__(self) -> None:
        self._transports: dict[tuple[str, int], asyncio.Transport] = {}

    def hang_up(self, scope: Scope) -> None:
        """Closes after what was sent already has left."""
        transport = self._transports.get(tuple(scope["client"]))
        if transport is not None:
            transport.close()

    def protocol(self) -> type[asyncio.Protocol]:
        transports = self._transports

        class Protocol(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                # asyncio does this only where the listening socket names its protocol; without it, each answer
                # whose head and body leave separately waits 40 ms for an acknowledgement.
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.client is not None:
                    transports[self.client] = transport

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                if self.client is not None:
                    transports.pop(self.client, None)

        return Protocol


class Server(uvicorn.Server):
    """The parent looks for its end every tenth of a second and then sleeps for another: tests start many."""

    def __init__(self, app: ASGIApp, connections: Connections) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=connections.protocol(),
                loop="asyncio",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
            )
        )
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self, sockets: list[socket.socket]) -> None:
        """In a thread of its own; returns when requests are answered."""
        self._thread = threading.Thread(
            target=self.run, kwargs={"sockets": sockets}, name="local-hub", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self.started or self._loop is None:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("The local Hub did not start")
            time.sleep(0.002)

    def stop(self) -> None:
        self.should_exit = True
        if self._loop is not None and self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._wake.set)
            self._thread.join(timeout=_START_TIMEOUT_S)

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        counter = 0
        while not await self.on_tick(counter):
            counter = (counter + 1) % 864_000
            waiting = asyncio.ensure_future(self._wake.wait())
            await asyncio.wait([waiting], timeout=0.1)
            waiting.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()  # idle ones close now, others after their answer
        deadline = time.monotonic() + _UNFINISHED_REQUESTS_S
        # A task whose client went away still has a file open.
        while (
            (self.server_state.connections or self.server_state.tasks)
            and time.monotonic() < deadline
            and not self.force_exit
        ):
            await asyncio.sleep(0.002)
        for task in list(self.server_state.tasks):
            task.cancel()
