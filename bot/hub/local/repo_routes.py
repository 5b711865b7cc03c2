"""Changes to repos as a whole: creating, deleting, moving, settings, access to gated files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bot.hub.local import errors
from bot.hub.local.accounts import require_writer
from bot.hub.local.commit_routes import repo_url
from bot.hub.local.context import Asked, Json, asked, context, find, identity, json_body
from bot.hub.local.names import check_repo_id, parse_repo_type

_REPO = "/api/{kind}/{namespace}/{name}"
_Work = Callable[[Request, Mapping[str, Any]], Response]


def create(request: Request, body: Mapping[str, Any]) -> Response:
    repo_type, private = parse_repo_type(body.get("type")), _visibility(body)
    who = identity(request)
    if who is None:
        raise errors.HubError(401, "Invalid username or password.")
    repo_id = check_repo_id(f"{body.get('organization') or who.user}/{body.get('name')}")
    require_writer(who, repo_id.partition("/")[0])
    try:
        repo = context(request).store.create(repo_id, repo_type=repo_type, private=bool(private), author=who.user)
    except errors.HubError as error:
        if error.status != 409:
            raise
        # The client takes the url from this answer when it was told that the repo may exist.
        repo = context(request).store.repo(repo_id, repo_type=repo_type)
        message = f"You already created this {repo_type} repo: {repo_id}"
        answer = {"error": message, "url": repo_url(request, repo)}
        return Json(answer, status_code=409, headers={"X-Error-Message": message})
    return Json({"url": repo_url(request, repo), "name": repo_id, "id": repo_id})


def delete(request: Request, body: Mapping[str, Any]) -> Response:
    who = identity(request)
    namespace = body.get("organization") or (who.user if who else "")
    found = _named(request, f"{namespace}/{body.get('name')}", body)
    found.require_owner()
    context(request).store.delete(found.repo)
    return Response(status_code=204)


def move(request: Request, body: Mapping[str, Any]) -> Response:
    found = _named(request, str(body.get("fromRepo")), body)
    new_id = check_repo_id(str(body.get("toRepo")))
    require_writer(found.require_owner(), new_id.partition("/")[0])
    moved = context(request).store.move(found.repo, new_id)
    return Json({"url": repo_url(request, moved)})


def update_settings(request: Request, body: Mapping[str, Any]) -> Response:
    found = asked(request)
    found.require_owner()
    changes: dict[str, Any] = {}
    if "gated" in body:
        if body["gated"] not in ("auto", "manual", False):
            raise errors.bad_request("`gated` must be auto, manual or false")
        changes["gated"] = body["gated"]
    if (private := _visibility(body)) is not None:
        changes["private"] = private
    if not changes:
        raise errors.bad_request("Nothing to update")
    settings = found.repo.update_settings(**changes)
    return Json({"private": settings.private, "gated": settings.gated})


def grant_access(request: Request, body: Mapping[str, Any]) -> Response:
    found = asked(request)
    found.require_owner()
    user = str(body.get("user"))
    if not found.settings.gated:
        raise errors.bad_request("The repo is not gated")
    if not context(request).accounts.has_user(user):
        raise errors.HubError(404, f"No such user: {user}")
    if user in found.settings.granted:
        raise errors.bad_request(f"{user} already has access")
    found.repo.grant(user)
    return Json({})


def _named(request: Request, repo_id: str, body: Mapping[str, Any]) -> Asked:
    return find(context(request), check_repo_id(repo_id), parse_repo_type(body.get("type")), identity(request))


def _visibility(body: Mapping[str, Any]) -> bool | None:
    """Whether it is to be private; None when the client does not say."""
    visibility = body.get("visibility")
    if visibility is None:
        return bool(body["private"]) if body.get("private") is not None else None
    if visibility not in ("private", "public"):
        raise errors.bad_request(f"Unsupported visibility: {visibility!r}")
    return bool(visibility == "private")


def _with_json(path: str, work: _Work, method: str) -> Route:
    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(work, request, await json_body(request))

    return Route(path, endpoint, methods=[method])


routes = [
    _with_json("/api/repos/create", create, "POST"),
    _with_json("/api/repos/delete", delete, "DELETE"),
    _with_json("/api/repos/move", move, "POST"),
    _with_json(_REPO + "/settings", update_settings, "PUT"),
    _with_json(_REPO + "/user-access-request/grant", grant_access, "POST"),
]
