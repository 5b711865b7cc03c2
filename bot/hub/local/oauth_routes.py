"""The exchange of a workflow's id-token for a token of the Hub (RFC 8693), as Trusted Publishers use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bot.hub.local.accounts import Identity
from bot.hub.local.context import Context, Json, context, json_body
from bot.hub.local.errors import HubError, RepoMovedError
from bot.hub.local.trust import RefusedError

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


routes = [Route("/oauth/token", token, methods=["POST"])]
