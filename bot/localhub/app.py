"""The two applications of a hub, with the routes for token exchange and for tests, and uvicorn to serve them.

Requests to `/_local/` must carry the header `X-Local-Hub`, which a page in a browser cannot send across origins.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from bot.localhub import collection_routes, file_routes, pages, read_routes, write_routes
from bot.localhub.access import Identity, RefusedError
from bot.localhub.context import Context, Json, context, json_body
from bot.localhub.middleware import Fault
from bot.localhub.protocol import HubError, RepoMovedError, forbidden, repo_not_found

HEADER = "X-Local-Hub"
PUBLISHER = "[OIDC]"  # the author of a workflow's commits
_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105 - a name, no secret
_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - likewise
_START_TIMEOUT_S = 10.0
_UNFINISHED_REQUESTS_S = 1.0


def hub_app(context: Context) -> Starlette:
    app = Starlette(
        routes=[
            *write_routes.routes,
            *collection_routes.routes,
            Route("/oauth/token", token, methods=["POST"]),
            *read_routes.routes,
            *file_routes.routes,
            Route("/_local/faults", faults, methods=["GET", "POST", "DELETE"]),
            Route("/_local/requests", requests, methods=["GET", "DELETE"]),
            *pages.routes,
        ],
        exception_handlers={HubError: _error_response, RepoMovedError: _redirect},
    )
    app.router.redirect_slashes = False
    app.state.context = context
    return app


def files_app(context: Context) -> Starlette:
    app = Starlette(routes=file_routes.cdn_routes, exception_handlers={HubError: _error_response})
    app.router.redirect_slashes = False
    app.state.context = context
    return app


def _error_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubError)
    if pages.wants_html(request):
        return pages.error_page(request, error)
    # A header is one line of ASCII, and a message may quote any name.
    message = " ".join(error.message.encode("ascii", "backslashreplace").decode().split())
    headers = {**error.headers, "X-Error-Message": message}
    if error.code:
        headers["X-Error-Code"] = error.code
    return Json({"error": error.message}, status_code=error.status, headers=headers)


def _redirect(request: Request, error: Exception) -> Response:
    assert isinstance(error, RepoMovedError)
    if f"/{error.old_id}" not in request.url.path:  # the body names it
        return _error_response(request, repo_not_found(authenticated=True))
    path = request.url.path.replace(f"/{error.old_id}", f"/{quote(error.new_id)}", 1)
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"{path}{query}", status_code=307)


# --- token exchange -----------------------------------------------------------------------------------------


async def token(request: Request) -> Response:
    """An id-token for an access token: https://www.rfc-editor.org/rfc/rfc8693"""
    return await run_in_threadpool(_exchange, request, await json_body(request))


def _exchange(request: Request, body: Mapping[str, Any]) -> Response:
    id_token, resource = body.get("subject_token"), body.get("resource")
    if body.get("grant_type") != _GRANT:
        return _refusal("unsupported_grant_type", "Only token exchange is supported")
    if body.get("subject_token_type") != _ID_TOKEN or not id_token or not resource:
        return _refusal("invalid_request", "`subject_token_type`, `subject_token` and `resource` are required")
    hub = context(request)
    try:
        identity = _identity_for(hub, str(resource))
        hub.trust.check(str(id_token), resource=str(resource), audience=hub.endpoint)
    except (HubError, RepoMovedError, RefusedError):
        return _refusal("invalid_grant", "No trusted publisher of the resource matches the id token")
    issued, expires_s = hub.trust.issue(identity)
    request.scope["state"]["user"] = identity.user
    answer = {"access_token": issued, "token_type": "bearer", "expires_in": expires_s}
    return Json({**answer, "issued_token_type": _ACCESS_TOKEN})


def _identity_for(hub: Context, resource: str) -> Identity:
    """Raises RefusedError or HubError for a repo or user that does not exist."""
    if "/" not in resource:
        if not hub.accounts.has_user(resource):
            raise RefusedError("no such user")
        orgs = hub.accounts.memberships(resource)
        return Identity(user=resource, role="read", orgs=orgs, only=frozenset())
    is_dataset = resource.startswith("datasets/")
    repo = hub.store.repo(resource.removeprefix("datasets/"), repo_type="dataset" if is_dataset else "model")
    return Identity(user=PUBLISHER, role="write", orgs={}, only=frozenset({repo.key}))


def _refusal(error: str, description: str) -> Response:
    return Json({"error": error, "error_description": description}, status_code=400)


# --- for tests ----------------------------------------------------------------------------------------------


async def faults(request: Request) -> Response:
    _require_header(request)
    known = context(request).faults
    if request.method == "POST":
        known.add(Fault.from_json(await json_body(request)))
    elif request.method == "DELETE":
        known.clear()
    return Json([dataclasses.asdict(fault) for fault in known.pending])


async def requests(request: Request) -> Response:
    _require_header(request)
    log = context(request).log
    if request.method == "DELETE":
        log.clear()
    return Json([dataclasses.asdict(record) for record in log.records])


def _require_header(request: Request) -> None:
    if HEADER not in request.headers:
        raise forbidden(f"The header {HEADER} is missing")


# --- serving ------------------------------------------------------------------------------------------------


class Connections:
    """Open connections by the client's address, because an ASGI application cannot close its own."""

    def __init__(self) -> None:
        self._transports: dict[tuple[str, int], asyncio.Transport] = {}

    def hang_up(self, scope: Scope) -> None:
        """Closes the connection once everything written to it was sent."""
        transport = self._transports.get(tuple(scope["client"]))
        if transport is not None:
            transport.close()

    def protocol(self) -> type[asyncio.Protocol]:
        transports = self._transports

        class Protocol(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # always a TCP one
                super().connection_made(transport)
                # asyncio sets it only on sockets that name their protocol. Without it, a response whose head and
                # body are sent separately waits 40 ms for an acknowledgement (Nagle's algorithm).
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.client is not None:
                    transports[self.client] = transport

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                if self.client is not None:
                    transports.pop(self.client, None)

        return Protocol


class Server(uvicorn.Server):
    """uvicorn's server, which takes 0.2 s to stop, stopped at once: tests start many."""

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
        """Serves in a new thread; returns once it accepts requests."""
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
        # A task may hold a file open after its client has disconnected.
        while (
            (self.server_state.connections or self.server_state.tasks)
            and time.monotonic() < deadline
            and not self.force_exit
        ):
            await asyncio.sleep(0.002)
        for task in list(self.server_state.tasks):
            task.cancel()
