"""Changes to what a repo contains: the steps of a commit, branches and tags."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bot.hub.local import errors, gitattributes
from bot.hub.local.card import check_card
from bot.hub.local.context import Asked, Json, asked, context, flag, identity, json_body, number, param, text
from bot.hub.local.names import check_path, check_ref_name, check_sha256
from bot.hub.local.records import Delete, Operation, Put
from bot.hub.local.repo import HEADS, TAGS, Repo

_REPO = "/api/{kind}/{namespace}/{name}"


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
    """Tells the client which files to send as large ones, and what is there already."""
    body = await json_body(request)
    return await run_in_threadpool(_preupload, request, body)


def _preupload(request: Request, body: Mapping[str, Any]) -> Response:
    repo = _writable(request).repo
    files = body.get("files")
    if not isinstance(files, list) or len(files) > context(request).limits.preupload_files:
        raise errors.bad_request("`files` must be a list, and not too long")
    commit = repo.commit_at(param(request, "rev"))
    attributes = repo.gitattributes(commit.sha)
    answers = []
    for file in files:
        path, size, sample = check_path(text(file, "path")), number(file, "size"), _decode(file.get("sample", ""))
        is_large = gitattributes.is_large(path, size=size, sample=sample, gitattributes=attributes)
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
            raise errors.HubError(413, "The commit is too large: send large files as LFS")
    return await run_in_threadpool(_commit, request, bytes(body))


def _commit(request: Request, body: bytes) -> Response:
    found, as_pull_request = asked(request), flag(request.query_params, "create_pr")
    # Anybody who is logged in may propose; only members of the namespace may push.
    if as_pull_request and found.identity is None:
        raise errors.repo_not_found(authenticated=False)
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
            raise errors.bad_request(f"Malformed commit: {error}") from None
    if header is None:
        raise errors.bad_request("A commit needs a header")
    return header, operations


def _operation(repo: Repo, key: str, value: Mapping[str, Any]) -> Operation:
    path = check_path(text(value, "path").rstrip("/"))
    if key == "file":
        content = value["content"]
        content = _decode(content) if value.get("encoding") == "base64" else str(content).encode()
        if len(content) > gitattributes.REGULAR_MAX_BYTES:
            raise errors.bad_request(f"{path} is larger than 10 MiB: send it as LFS")
        return Put(path=path, entry=repo.put_bytes(content))
    if key == "lfsFile":
        entry = repo.entry(check_sha256(value["oid"]), is_lfs=True)
        if value.get("size", entry.size_bytes) != entry.size_bytes:
            raise errors.bad_request(f"{path}: the size is not that of the uploaded object")
        return Put(path=path, entry=entry)
    if key == "copyFile":
        source = repo.commit_at(value.get("srcRevision") or "main").files.get(text(value, "srcPath"))
        if source is None:
            raise errors.entry_not_found(f"{value['srcPath']} does not exist")
        return Put(path=path, entry=source)
    if key in ("deletedFile", "deletedFolder"):
        return Delete(path=path, is_folder=key == "deletedFolder")
    raise errors.bad_request(f"Unknown operation: {key!r}")


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


def repo_url(request: Request, repo: Repo) -> str:
    prefix = "datasets/" if repo.repo_type == "dataset" else ""
    return f"{context(request).endpoint}/{prefix}{repo.repo_id}"


def _writable(request: Request) -> Asked:
    found = asked(request)
    if not flag(request.query_params, "create_pr"):
        found.require_write()
    return found


def _decode(text: object) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except binascii.Error:
        raise errors.bad_request("Not base64") from None


routes = [
    Route("/api/validate-yaml", validate_yaml, methods=["POST"]),
    Route(_REPO + "/preupload/{rev}", preupload, methods=["POST"]),
    Route(_REPO + "/commit/{rev}", commit, methods=["POST"]),
    Route(_REPO + "/tag/{rev}", create_tag, methods=["POST"]),
    Route(_REPO + "/tag/{rev}", delete_tag, methods=["DELETE"]),
    Route(_REPO + "/branch/{rev}", create_branch, methods=["POST"]),
    Route(_REPO + "/branch/{rev}", delete_branch, methods=["DELETE"]),
]
