"""Downloads and uploads: `resolve` and git LFS on the hub, the bytes of large files on a second host (the CDN).

https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from bot.files import chunks, write_hashed
from bot.localhub import git, protocol
from bot.localhub.context import Context, Json, RepoAccess, context, json_body, number, open_repo, param
from bot.localhub.protocol import FileEntry, check_sha256
from bot.localhub.repo import Repo

# --- downloads ----------------------------------------------------------------------------------------------


def resolve(request: Request) -> Response:
    repo, sha, path, entry = _find(request)
    headers = {"X-Repo-Commit": sha, "Cache-Control": "no-store"}
    if not entry.is_lfs:
        headers["ETag"] = f'"{entry.blob_id}"'
        return FileResponse(
            repo.object_path(entry.sha256), headers=headers, media_type="text/plain; charset=utf-8"
        )
    ctx = context(request)
    location = ctx.signer.url(
        ctx.files_endpoint, "GET", f"/{repo.repo_type}s/{repo.repo_id}/objects/{entry.sha256}/{path}"
    )
    headers |= {
        "ETag": f'"{entry.blob_id}"',
        "X-Linked-ETag": f'"{entry.sha256}"',
        "X-Linked-Size": str(entry.size_bytes),
        "Location": location,
    }
    return PlainTextResponse(f"Found. Redirecting to {location}", status_code=302, headers=headers)


def raw(request: Request) -> Response:
    """The file as git has it: of a large file, the LFS pointer."""
    repo, sha, _, entry = _find(request)
    content = git.lfs_pointer(entry.sha256, entry.size_bytes) if entry.is_lfs else repo.read(entry)
    return PlainTextResponse(content, headers={"X-Repo-Commit": sha, "ETag": f'"{entry.blob_id}"'})


def _find(request: Request) -> tuple[Repo, str, str, FileEntry]:
    found = open_repo(request)
    commit = found.repo.commit_at(param(request, "rev"))
    found.require_files()
    path = param(request, "path")
    entry = commit.files.get(path)
    if entry is None:
        raise protocol.entry_not_found(commit=commit.sha)
    return found.repo, commit.sha, path, entry


def stored_object(request: Request) -> Response:
    """A large file, for anyone with its signed link."""
    ctx = context(request)
    # Object storage takes one kind of authorization. A client that sends both has leaked its token.
    if "authorization" in request.headers:
        raise protocol.bad_request("Only one auth mechanism allowed")
    kind, namespace, name = (param(request, key) for key in ("kind", "namespace", "name"))
    sha256, path = check_sha256(param(request, "sha256")), param(request, "path")
    ctx.signer.check(request.method, f"/{kind}/{namespace}/{name}/objects/{sha256}/{path}", request.query_params)
    repo = ctx.store.repo(f"{namespace}/{name}", repo_type="dataset" if kind == "datasets" else "model")
    if not repo.has_object(sha256):
        raise protocol.HubError(404, "NoSuchKey")
    return FileResponse(
        repo.object_path(sha256),
        headers={"ETag": f'"{sha256}"'},
        media_type="application/octet-stream",
        filename=path.rpartition("/")[2],
    )


# --- uploads ------------------------------------------------------------------------------------------------


async def batch(request: Request) -> Response:
    return await run_in_threadpool(_batch, request, await json_body(request))


def _batch(request: Request, body: Mapping[str, Any]) -> Response:
    found = open_repo(request)
    operation = body.get("operation")
    if operation == "upload":
        # A client that opens a pull request leaves the ref out, and may not be allowed to push.
        if "ref" in body or found.identity is None:
            found.require_write()
    elif operation == "download":
        found.require_files()
    else:
        raise protocol.bad_request(f"Unknown operation: {operation!r}")
    objects, transfer = [], "basic"
    for item in body.get("objects", []):
        oid, size = check_sha256(item.get("oid")), number(item, "size")
        answer: dict[str, Any] = {"oid": oid, "size": size}
        if operation == "upload":
            parts = size > context(request).limits.multipart_above_bytes and "multipart" in body.get(
                "transfers", []
            )
            transfer = "multipart" if parts else transfer
            if not found.repo.has_object(oid):
                answer["actions"] = _upload_actions(context(request), found, oid, size, in_parts=parts)
        elif found.repo.has_object(oid):
            path = f"/{found.repo.repo_type}s/{found.repo.repo_id}/objects/{oid}/{oid}"
            url = context(request).signer.url(context(request).files_endpoint, "GET", path)
            answer["actions"] = {"download": {"href": url}}
        else:
            answer["error"] = {"code": 404, "message": "Object does not exist"}
        objects.append(answer)
    return Json({"transfer": transfer, "objects": objects}, media_type="application/vnd.git-lfs+json")


def _upload_actions(ctx: Context, found: RepoAccess, oid: str, size: int, *, in_parts: bool) -> dict[str, Any]:
    repo = found.repo
    base = f"/{repo.repo_type}s/{repo.repo_id}/uploads/{oid}"
    prefix = "datasets/" if repo.repo_type == "dataset" else ""
    verify = {"href": f"{ctx.endpoint}/{prefix}{repo.repo_id}.git/info/lfs/objects/verify"}
    if not in_parts:
        href = ctx.signer.url(ctx.files_endpoint, "PUT", base, size=str(size))
        return {"upload": {"href": href, "header": {}}, "verify": verify}
    upload_id, part_bytes = uuid.uuid4().hex, ctx.limits.part_bytes
    header = {"chunk_size": str(part_bytes)}
    for part in range(1, -(-size // part_bytes) + 1):
        part_size = min(part_bytes, size - (part - 1) * part_bytes)
        header[str(part)] = ctx.signer.url(
            ctx.files_endpoint, "PUT", f"{base}/{upload_id}/{part}", size=str(part_size)
        )
    href = ctx.signer.url(ctx.endpoint, "POST", f"/api/complete-upload{base}/{upload_id}", size=str(size))
    return {"upload": {"href": href, "header": header}, "verify": verify}


async def verify(request: Request) -> Response:
    body = await json_body(request)

    def work() -> Response:
        repo = open_repo(request).repo
        path = repo.object_path(check_sha256(body.get("oid")))
        if not path.is_file() or path.stat().st_size != body.get("size"):
            raise protocol.HubError(404, "The object was not uploaded, or has another size")
        return Json({})

    return await run_in_threadpool(work)


async def put_object(request: Request) -> Response:
    """A whole object. Content that does not match its sha256 is deleted."""
    oid, repo = param(request, "oid"), _signed_repo(request)
    temporary = context(request).store.temporary_path()
    try:
        sha256 = await _receive(request, temporary)
        if sha256 != check_sha256(oid):
            raise protocol.bad_request("BadDigest: the content does not match its sha256")
        await run_in_threadpool(repo.adopt, temporary, sha256)
    finally:
        temporary.unlink(missing_ok=True)
    return Response(headers={"ETag": f'"{sha256}"'})


async def put_part(request: Request) -> Response:
    _signed_repo(request)
    folder = _parts_folder(request)
    folder.mkdir(exist_ok=True)
    temporary = context(request).store.temporary_path()
    try:
        sha256 = await _receive(request, temporary)
        temporary.replace(folder / str(int(param(request, "part"))))
    finally:
        temporary.unlink(missing_ok=True)
    return Response(headers={"ETag": f'"{sha256}"'})


async def complete(request: Request) -> Response:
    """Concatenates the parts, in the order that the client lists them."""
    repo, oid, folder = _signed_repo(request), check_sha256(param(request, "oid")), _parts_folder(request)
    body = await json_body(request)
    size = int(request.query_params["size"])
    parts = [folder / str(number(part, "partNumber")) for part in body.get("parts", [])]

    def work() -> Response:
        if not repo.has_object(oid):  # a client that did not get the response asks again
            _assemble(context(request), repo, oid, parts, size)
            shutil.rmtree(folder, ignore_errors=True)
        return Json({"success": True})

    return await run_in_threadpool(work)


def _assemble(ctx: Context, repo: Repo, oid: str, parts: list[Path], size: int) -> None:
    temporary = ctx.store.temporary_path()
    try:
        with temporary.open("wb") as target:
            sha256, written = write_hashed(target, _contents(parts))
        if (sha256, written) != (oid, size):
            raise protocol.bad_request("BadDigest: the parts do not match their sha256")
        repo.adopt(temporary, sha256)
    finally:
        temporary.unlink(missing_ok=True)


def _contents(parts: list[Path]) -> Iterator[bytes]:
    for part in parts:
        if not part.is_file():
            raise protocol.bad_request(f"Part {part.name} was not uploaded")
        with part.open("rb") as file:
            yield from chunks(file)


async def _receive(request: Request, target: Path) -> str:
    """Streams the body to disk; returns its sha256. Raises 400 unless it has the signed size."""
    expected = int(request.query_params["size"])
    digest, received = hashlib.sha256(), 0
    with target.open("wb") as file:
        async for chunk in request.stream():
            received += len(chunk)
            if received > expected:
                raise protocol.bad_request("EntityTooLarge: more bytes than declared")
            digest.update(chunk)
            file.write(chunk)
        if received != expected:
            raise protocol.bad_request("IncompleteBody: fewer bytes than declared")
        file.flush()
        await run_in_threadpool(os.fsync, file.fileno())
    return digest.hexdigest()


def _signed_repo(request: Request) -> Repo:
    ctx = context(request)
    if "authorization" in request.headers:
        raise protocol.bad_request("Only one auth mechanism allowed")
    path = request.url.path
    ctx.signer.check(request.method, path, request.query_params)
    kind, repo_id = param(request, "kind"), f"{param(request, 'namespace')}/{param(request, 'name')}"
    return ctx.store.repo(repo_id, repo_type="dataset" if kind == "datasets" else "model")


def _parts_folder(request: Request) -> Path:
    upload_id = param(request, "upload_id")
    if not upload_id.isalnum():
        raise protocol.bad_request("Invalid upload id")
    return context(request).store.temporary / f"parts-{upload_id}"


_GIT = "{namespace}/{name}.git/info/lfs"
_UPLOADS = "/{kind}/{namespace}/{name}/uploads/{oid}"
routes = [
    Route(f"/{_GIT}/objects/batch", batch, methods=["POST"]),
    Route(f"/{{kind}}/{_GIT}/objects/batch", batch, methods=["POST"]),
    Route(f"/{_GIT}/objects/verify", verify, methods=["POST"]),
    Route(f"/{{kind}}/{_GIT}/objects/verify", verify, methods=["POST"]),
    Route("/api/complete-upload" + _UPLOADS + "/{upload_id}", complete, methods=["POST"]),
    Route("/{namespace}/{name}/resolve/{rev}/{path:path}", resolve),
    Route("/{kind}/{namespace}/{name}/resolve/{rev}/{path:path}", resolve),
    Route("/{namespace}/{name}/raw/{rev}/{path:path}", raw),
    Route("/{kind}/{namespace}/{name}/raw/{rev}/{path:path}", raw),
]
cdn_routes = [
    Route("/{kind}/{namespace}/{name}/objects/{sha256}/{path:path}", stored_object),
    Route(_UPLOADS, put_object, methods=["PUT"]),
    Route(_UPLOADS + "/{upload_id}/{part}", put_part, methods=["PUT"]),
]
