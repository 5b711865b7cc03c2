"""Files: `resolve` on the hub, and the second host that holds the large ones, as the Hub's CDN does."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from bot.hub.local import errors, gitobjects
from bot.hub.local.context import asked, context, param
from bot.hub.local.names import check_sha256
from bot.hub.local.records import FileEntry
from bot.hub.local.repo import Repo


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
    """The file as git has it: for a large one, its pointer."""
    repo, sha, _, entry = _find(request)
    content = gitobjects.lfs_pointer(entry.sha256, entry.size_bytes) if entry.is_lfs else repo.read(entry)
    return PlainTextResponse(content, headers={"X-Repo-Commit": sha, "ETag": f'"{entry.blob_id}"'})


def _find(request: Request) -> tuple[Repo, str, str, FileEntry]:
    found = asked(request)
    commit = found.repo.commit_at(param(request, "rev"))
    found.require_files()
    path = param(request, "path")
    entry = commit.files.get(path)
    if entry is None:
        raise errors.entry_not_found(commit=commit.sha)
    return found.repo, commit.sha, path, entry


def stored_object(request: Request) -> Response:
    """On the second host: who has the signed link may read, and nothing else is asked."""
    ctx = context(request)
    # Object storage takes one kind of permission at a time; a client that sends both has leaked its token.
    if "authorization" in request.headers:
        raise errors.bad_request("Only one auth mechanism allowed")
    kind, namespace, name = (param(request, key) for key in ("kind", "namespace", "name"))
    sha256, path = check_sha256(param(request, "sha256")), param(request, "path")
    ctx.signer.check(request.method, f"/{kind}/{namespace}/{name}/objects/{sha256}/{path}", request.query_params)
    repo = ctx.store.repo(f"{namespace}/{name}", repo_type="dataset" if kind == "datasets" else "model")
    if not repo.has_object(sha256):
        raise errors.HubError(404, "NoSuchKey")
    return FileResponse(
        repo.object_path(sha256),
        headers={"ETag": f'"{sha256}"'},
        media_type="application/octet-stream",
        filename=path.rpartition("/")[2],
    )


routes = [
    Route("/{namespace}/{name}/resolve/{rev}/{path:path}", resolve),
    Route("/{kind}/{namespace}/{name}/resolve/{rev}/{path:path}", resolve),
    Route("/{namespace}/{name}/raw/{rev}/{path:path}", raw),
    Route("/{kind}/{namespace}/{name}/raw/{rev}/{path:path}", raw),
]
stored_routes = [Route("/{kind}/{namespace}/{name}/objects/{sha256}/{path:path}", stored_object)]
