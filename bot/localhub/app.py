"""The two applications of a hub, with the routes for token exchange (RFC 8693) and for tests (`/_local/`).

Requests to `/_local/` must carry the header `X-Local-Hub`, which a page in a browser cannot send across origins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from bot.localhub import file_routes, pages, read_routes, write_routes
from bot.localhub.accounts import Identity
from bot.localhub.context import Context, Json, context, json_body
from bot.localhub.middleware import Fault
from bot.localhub.protocol import HubError, RepoMovedError, forbidden
from bot.localhub.trust import RefusedError

HEADER = "X-Local-Hub"


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


admin_routes = [
    Route("/_local/faults", faults, methods=["GET", "POST", "DELETE"]),
    Route("/_local/requests", requests, methods=["GET", "DELETE"]),
]


_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105 - a name, no secret
_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105
PUBLISHER = "[OIDC]"  # whose name the commits of a workflow carry


async def token(request: Request) -> Response:
    return await run_in_threadpool(_exchange, request, await json_body(request))


def _exchange(request: Request, body: Mapping[str, Any]) -> Response:
    id_token, resource = body.get("subject_token"), body.get("resource")
    if body.get("grant_type") != _GRANT:
        return _refusal("unsupported_grant_type", "Only the exchange of tokens is served here")
    if body.get("subject_token_type") != _ID_TOKEN or not id_token or not resource:
        return _refusal("invalid_request", "`subject_token_type`, `subject_token` and `resource` are needed")
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
    """Raises when there is no such repo or user."""
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


oauth_routes = [Route("/oauth/token", token, methods=["POST"])]


def hub_app(context: Context) -> Starlette:
    app = Starlette(
        routes=[
            *write_routes.repo_routes,
            *write_routes.commit_routes,
            *file_routes.lfs_routes,
            *oauth_routes,
            *read_routes.routes,
            *file_routes.routes,
            *admin_routes,
            *pages.routes,
        ],
        exception_handlers={HubError: _error_answer, RepoMovedError: _moved_answer},
    )
    app.router.redirect_slashes = False
    app.state.context = context
    return app


def files_app(context: Context) -> Starlette:
    app = Starlette(
        routes=[*file_routes.stored_routes, *file_routes.upload_routes],
        exception_handlers={HubError: _error_answer},
    )
    app.router.redirect_slashes = False
    app.state.context = context
    return app


def _error_answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, HubError)
    if pages.wants_html(request):
        return pages.error_page(request, error)
    # A header is one line of Latin text, whatever name the message quotes.
    message = " ".join(error.message.encode("ascii", "backslashreplace").decode().split())
    headers = {**error.headers, "X-Error-Message": message}
    if error.code:
        headers["X-Error-Code"] = error.code
    return Json({"error": error.message}, status_code=error.status, headers=headers)


def _moved_answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, RepoMovedError)
    path = request.url.path.replace(f"/{error.old_id}", f"/{quote(error.new_id)}", 1)
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"{path}{query}", status_code=307)
