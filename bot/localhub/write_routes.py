"""Changes: creating, moving and deleting repos, their settings, and commits, branches and tags."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bot.localhub import git, protocol
from bot.localhub.access import require_writer
from bot.localhub.card import check_card
from bot.localhub.context import (
    Json,
    RepoAccess,
    context,
    flag,
    identity,
    json_body,
    number,
    open_repo,
    open_repo_id,
    param,
    text,
)
from bot.localhub.protocol import (
    Delete,
    Operation,
    Put,
    check_path,
    check_ref_name,
    check_repo_id,
    check_sha256,
    parse_repo_type,
)
from bot.localhub.repo import HEADS, TAGS, Repo

_Work = Callable[[Request, Mapping[str, Any]], Response]


# --- repos --------------------------------------------------------------------------------------------------


def create(request: Request, body: Mapping[str, Any]) -> Response:
    repo_type, private = parse_repo_type(body.get("type")), _visibility(body)
    who = identity(request)
    if who is None:
        raise protocol.HubError(401, "Invalid username or password.")
    repo_id = check_repo_id(f"{body.get('organization') or who.user}/{body.get('name')}")
    require_writer(who, repo_id.partition("/")[0])
    try:
        repo = context(request).store.create(repo_id, repo_type=repo_type, private=bool(private), author=who.user)
    except protocol.HubError as error:
        if error.status != 409:
            raise
        # With exist_ok=True, the client takes the URL from this response.
        repo = context(request).store.spelled_so(repo_id, repo_type=repo_type)
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
    found = open_repo(request)
    found.require_owner()
    changes: dict[str, Any] = {}
    if "gated" in body:
        if body["gated"] not in ("auto", "manual", False):
            raise protocol.bad_request("`gated` must be auto, manual or false")
        changes["gated"] = body["gated"]
    if (private := _visibility(body)) is not None:
        changes["private"] = private
    if not changes:
        raise protocol.bad_request("Nothing to update")
    settings = found.repo.update_settings(**changes)
    return Json({"private": settings.private, "gated": settings.gated})


def grant_access(request: Request, body: Mapping[str, Any]) -> Response:
    found = open_repo(request)
    found.require_owner()
    user = str(body.get("user"))
    if not found.settings.gated:
        raise protocol.bad_request("The repo is not gated")
    if not context(request).accounts.has_user(user):
        raise protocol.HubError(404, f"No such user: {user}")
    if user in found.settings.granted:
        raise protocol.bad_request(f"{user} already has access")
    found.repo.grant(user)
    return Json({})


def _named(request: Request, repo_id: str, body: Mapping[str, Any]) -> RepoAccess:
    return open_repo_id(
        context(request), check_repo_id(repo_id), parse_repo_type(body.get("type")), identity(request)
    )


def _visibility(body: Mapping[str, Any]) -> bool | None:
    """Whether the repo becomes private; None when the client does not say."""
    visibility = body.get("visibility")
    if visibility is None:
        return bool(body["private"]) if body.get("private") is not None else None
    if visibility not in ("private", "public"):
        raise protocol.bad_request(f"Unsupported visibility: {visibility!r}")
    return bool(visibility == "private")


# --- commits, branches, tags --------------------------------------------------------------------------------


async def validate_yaml(request: Request) -> Response:
    body = await json_body(request)
    await run_in_threadpool(identity, request)
    problems, warnings = check_card(str(body.get("content", "")))
    answer = {
        "errors": [{"message": text} for text in problems],
        "warnings": [{"message": text} for text in warnings],
    }
    return Json(answer, status_code=400 if problems else 200)


async def preupload(request: Request) -> Response:
    """Which files to upload by LFS, and which are on the Hub already."""
    body = await json_body(request)
    return await run_in_threadpool(_preupload, request, body)


def _preupload(request: Request, body: Mapping[str, Any]) -> Response:
    repo = _writable(request).repo
    files = body.get("files")
    if not isinstance(files, list) or len(files) > context(request).limits.preupload_files:
        raise protocol.bad_request("`files` must be a list, of limited length")
    commit = repo.commit_at(param(request, "rev"))
    attributes = repo.gitattributes(commit.sha)
    answers = []
    for file in files:
        path, size, sample = check_path(text(file, "path")), number(file, "size"), _decode(file.get("sample", ""))
        is_large = git.is_large(path, size=size, sample=sample, gitattributes=attributes)
        answer = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
        if (entry := commit.files.get(path)) is not None:
            answer["oid"] = entry.sha256 if entry.is_lfs else entry.blob_id
        answers.append(answer)
    return Json({"files": answers})


async def commit(request: Request) -> Response:
    limit = context(request).limits.commit_body_bytes
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise protocol.HubError(413, "The commit is too large: send large files as LFS")
    return await run_in_threadpool(_commit, request, bytes(body))


def _commit(request: Request, body: bytes) -> Response:
    found, as_pull_request = open_repo(request), flag(request.query_params, "create_pr")
    # Every user may open a pull request; only members of the namespace may push.
    if as_pull_request and found.identity is None:
        raise protocol.repo_not_found(authenticated=False)
    author = found.identity if as_pull_request else found.require_write()
    assert author is not None
    header, operations = _parse(found.repo, body)
    made, ref = found.repo.add_commit(
        operations,
        title=text(header, "summary"),
        message=str(header.get("description") or ""),
        author=author.user,
        revision=param(request, "rev"),
        expected_parent=None if header.get("parentCommit") is None else text(header, "parentCommit"),
        as_pull_request=as_pull_request,
    )
    url = repo_url(request, found.repo)
    answer = {"success": True, "commitOid": made.sha, "commitUrl": f"{url}/commit/{made.sha}", "hookOutput": ""}
    if as_pull_request:
        answer["pullRequestUrl"] = f"{url}/discussions/{ref.rpartition('/')[2]}"
    return Json(answer)


def _parse(repo: Repo, body: bytes) -> tuple[Mapping[str, Any], list[Operation]]:
    header: Mapping[str, Any] | None = None
    operations: list[Operation] = []
    for line in filter(None, body.splitlines()):
        try:
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                header = value
            else:
                operations.append(_operation(repo, key, value))
        except (ValueError, KeyError, TypeError) as error:
            raise protocol.bad_request(f"Malformed commit: {error}") from None
    if header is None:
        raise protocol.bad_request("The commit has no header")
    return header, operations


def _operation(repo: Repo, key: str, value: Mapping[str, Any]) -> Operation:
    path = check_path(text(value, "path").rstrip("/"))
    if key == "file":
        content = value["content"]
        content = _decode(content) if value.get("encoding") == "base64" else str(content).encode()
        if len(content) > git.REGULAR_MAX_BYTES:
            raise protocol.bad_request(f"{path} is larger than 10 MiB: send it as LFS")
        return Put(path=path, entry=repo.put_bytes(content))
    if key == "lfsFile":
        entry = repo.entry(check_sha256(value["oid"]), is_lfs=True)
        if value.get("size", entry.size_bytes) != entry.size_bytes:
            raise protocol.bad_request(f"{path}: the uploaded object has another size")
        return Put(path=path, entry=entry)
    if key == "copyFile":
        source = repo.commit_at(value.get("srcRevision") or "main").files.get(text(value, "srcPath"))
        if source is None:
            raise protocol.entry_not_found(f"{value['srcPath']} does not exist")
        return Put(path=path, entry=source)
    if key in ("deletedFile", "deletedFolder"):
        return Delete(path=path, is_folder=key == "deletedFolder")
    raise protocol.bad_request(f"Unknown operation: {key!r}")


async def create_tag(request: Request) -> Response:
    body = await json_body(request)

    def work() -> Response:
        tag = check_ref_name(text(body, "tag"))
        _writable(request).repo.create_ref(TAGS + tag, param(request, "rev"))
        return Response(status_code=201)

    return await run_in_threadpool(work)


def delete_tag(request: Request) -> Response:
    _writable(request).repo.delete_ref(TAGS + param(request, "rev"))
    return Response(status_code=204)


async def create_branch(request: Request) -> Response:
    body = await json_body(request)

    def work() -> Response:
        branch = check_ref_name(param(request, "rev"))
        _writable(request).repo.create_ref(HEADS + branch, str(body.get("startingPoint") or "main"))
        return Response(status_code=201)

    return await run_in_threadpool(work)


def delete_branch(request: Request) -> Response:
    _writable(request).repo.delete_ref(HEADS + param(request, "rev"))
    return Response(status_code=204)


def _writable(request: Request) -> RepoAccess:
    found = open_repo(request)
    if not flag(request.query_params, "create_pr"):
        found.require_write()
    return found


def _decode(text: object) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except binascii.Error:
        raise protocol.bad_request("Not base64") from None


def repo_url(request: Request, repo: Repo) -> str:
    prefix = "datasets/" if repo.repo_type == "dataset" else ""
    return f"{context(request).endpoint}/{prefix}{repo.repo_id}"


def _with_json(path: str, work: _Work, method: str) -> Route:
    async def endpoint(request: Request) -> Response:
        return await run_in_threadpool(work, request, await json_body(request))

    return Route(path, endpoint, methods=[method])


_REPO = "/api/{kind}/{namespace}/{name}"
routes = [
    _with_json("/api/repos/create", create, "POST"),
    _with_json("/api/repos/delete", delete, "DELETE"),
    _with_json("/api/repos/move", move, "POST"),
    _with_json(_REPO + "/settings", update_settings, "PUT"),
    _with_json(_REPO + "/user-access-request/grant", grant_access, "POST"),
    Route("/api/validate-yaml", validate_yaml, methods=["POST"]),
    Route(_REPO + "/preupload/{rev}", preupload, methods=["POST"]),
    Route(_REPO + "/commit/{rev}", commit, methods=["POST"]),
    Route(_REPO + "/tag/{rev}", create_tag, methods=["POST"]),
    Route(_REPO + "/tag/{rev}", delete_tag, methods=["DELETE"]),
    Route(_REPO + "/branch/{rev}", create_branch, methods=["POST"]),
    Route(_REPO + "/branch/{rev}", delete_branch, methods=["DELETE"]),
]
