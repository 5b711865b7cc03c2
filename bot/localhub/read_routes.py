"""Reading: the user of a token, lists of repos, and a repo's metadata, refs, commits and files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bot.localhub import protocol
from bot.localhub.access import may_see
from bot.localhub.context import (
    Json,
    RepoAccess,
    context,
    flag,
    identity,
    next_page,
    open_repo,
    page_start,
    param,
    repo_type,
)
from bot.localhub.info import RepoFacts, last_changes, tree_items
from bot.localhub.repo import HEADS, PULLS, TAGS

_REPO = "/api/{kind}/{namespace}/{name}"
_SORTS = ("createdAt", "downloads", "lastModified", "likes", "trendingScore")
_MOST = 10**9


def whoami(request: Request) -> Response:
    who = identity(request)
    if who is None:
        raise protocol.HubError(401, "Invalid username or password.")
    if who.only is not None:
        raise protocol.forbidden("This token belongs to no account")
    orgs = [
        {"type": "org", "name": name, "fullname": name, "roleInOrg": role}
        for name, role in sorted(who.orgs.items())
    ]
    token = {"displayName": who.role, "role": who.role}
    return Json(
        {
            "type": "user",
            "id": who.user,
            "name": who.user,
            "fullname": who.user,
            "isPro": False,
            "orgs": orgs,
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


def repo_info(request: Request) -> Response:
    found = open_repo(request)
    revision = param(request, "rev") if "rev" in request.path_params else HEADS + "main"
    commit = found.repo.commit_at(revision)
    blobs = flag(request.query_params, "blobs")
    facts = RepoFacts(found.repo, found.settings, commit, blobs=blobs)
    expand = _expand(request)
    return Json(facts.expanded(expand) if expand else facts.whole())


def list_repos(request: Request) -> Response:
    query, start = request.query_params, page_start(request)
    matches = list(_matching(request))
    if (sort := query.get("sort")) in _SORTS:
        descending = query.get("direction", "-1") == "-1"
        matches.sort(key=lambda facts: facts.expanded([sort])[sort], reverse=descending)
    # As on the Hub, `limit` is the size of a page: whoever wants no more does not ask for the next.
    limit = int(query["limit"]) if query.get("limit", "").isdecimal() else 0
    end = start + min(limit or _MOST, context(request).limits.list_page)
    expand = _expand(request)
    page = [
        facts.expanded(expand)
        if expand
        else facts.listed(
            full=flag(query, "full"), card_data=flag(query, "cardData"), config=flag(query, "config")
        )
        for facts in matches[start:end]
    ]
    return Json(page, headers=next_page(request, str(end)) if end < len(matches) else None)


def _matching(request: Request) -> Iterator[RepoFacts]:
    query, who = request.query_params, identity(request)
    author, search = query.get("author", ""), query.get("search", "").lower()
    wanted = {tag for value in query.getlist("filter") for tag in value.split(",")}
    for repo in context(request).store.repos(repo_type(request), owner=author):
        if search not in repo.repo_id.lower():
            continue
        try:
            settings, commit = repo.settings(), repo.commit_at(HEADS + "main")
        except (FileNotFoundError, protocol.HubError):  # deleted or moved since it was listed
            continue
        if not may_see(who, repo, settings):
            continue
        if "gated" in query and flag(query, "gated") != bool(settings.gated):
            continue
        facts = RepoFacts(repo, settings, commit)
        if wanted <= set(facts.tags()) and query.get("pipeline_tag") in (None, facts.pipeline_tag()):
            yield facts


def list_refs(request: Request) -> Response:
    refs = open_repo(request).repo.refs()

    def under(prefix: str) -> list[dict[str, str]]:
        return [
            {"name": name.removeprefix(prefix), "ref": name, "targetCommit": sha}
            for name, sha in refs.items()
            if name.startswith(prefix)
        ]

    answer = {"branches": under(HEADS), "tags": under(TAGS), "converts": under("refs/convert/")}
    if flag(request.query_params, "include_prs"):
        answer["pullRequests"] = under(PULLS)
    return Json(answer)


def list_commits(request: Request) -> Response:
    repo, limits = open_repo(request).repo, context(request).limits
    # The cursor is a commit, so a push between two pages does not shift them.
    start = request.query_params.get("cursor") or repo.resolve(param(request, "rev"))
    page: list[dict[str, Any]] = []
    headers = None
    for commit in repo.history(repo.resolve(start)):
        if len(page) == limits.commits_page:
            headers = next_page(request, commit.sha)
            break
        item: dict[str, Any] = {
            "id": commit.sha,
            "title": commit.title,
            "message": commit.message,
            "date": commit.date,
            "authors": [{"user": commit.author}],
        }
        if "formatted" in request.query_params.getlist("expand[]"):
            item["formatted"] = {"title": commit.title, "message": commit.message}
        page.append(item)
    return Json(page, headers=headers)


def list_tree(request: Request) -> Response:
    found, query, limits = open_repo(request), request.query_params, context(request).limits
    # The cursor names the commit, so that all pages are of one tree.
    sha, _, position = query.get("cursor", "").partition("-")
    start = int(position) if position.isdecimal() else 0
    commit = found.repo.commit_at(sha or param(request, "rev"))
    expand = flag(query, "expand")
    folder = param(request, "path").strip("/") if "path" in request.path_params else ""
    items = tree_items(commit.files, folder=folder, recursive=flag(query, "recursive"))
    if not items and folder:
        raise protocol.entry_not_found(f"{folder} does not exist on {param(request, 'rev')}")
    end = start + (limits.expanded_tree_page if expand else limits.tree_page)
    page = _with_changes(found, commit.sha, items[start:end]) if expand else items[start:end]
    return Json(page, headers=next_page(request, f"{commit.sha}-{end}") if end < len(items) else None)


async def paths_info(request: Request) -> Response:
    form = parse_qs((await request.body()).decode("utf-8", "replace"))
    paths = [path.strip("/") for path in form.get("paths", [])]
    expand = form.get("expand", [""])[-1].lower() in ("1", "true")
    return await run_in_threadpool(_paths_info, request, paths, expand)


def _paths_info(request: Request, paths: list[str], expand: bool) -> Response:
    found = open_repo(request)
    if len(paths) > context(request).limits.paths_info_paths:
        raise protocol.HubError(413, "Too many paths")
    commit = found.repo.commit_at(param(request, "rev"))
    wanted = set(paths)
    items = [item for item in tree_items(commit.files, recursive=True) if item["path"] in wanted]
    return Json(_with_changes(found, commit.sha, items) if expand else items)


def _with_changes(found: RepoAccess, sha: str, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    changes = last_changes(found.repo.history(sha), [item["path"] for item in items])
    scan = {"status": "safe", "avScan": None, "pickleImportScan": None}
    return [
        {
            **item,
            "lastCommit": {"id": commit.sha, "title": commit.title, "date": commit.date},
            **({"securityFileStatus": scan} if item["type"] == "file" else {}),
        }
        for item in items
        for commit in [changes[item["path"]]]
    ]


def auth_check(request: Request) -> Response:
    found = open_repo(request)
    found.require_files()
    if request.url.path.endswith("/write"):
        found.require_write()
    return Json({})


def _expand(request: Request) -> list[str]:
    query = request.query_params
    return [*query.getlist("expand"), *query.getlist("expand[]")]


routes = [
    Route("/api/whoami-v2", whoami),
    Route("/api/{kind}", list_repos),
    Route(_REPO, repo_info),
    Route(_REPO + "/revision/{rev}", repo_info),
    Route(_REPO + "/refs", list_refs),
    Route(_REPO + "/commits/{rev}", list_commits),
    Route(_REPO + "/tree/{rev}", list_tree),
    Route(_REPO + "/tree/{rev}/{path:path}", list_tree),
    Route(_REPO + "/paths-info/{rev}", paths_info, methods=["POST"]),
    Route(_REPO + "/auth-check", auth_check),
    Route(_REPO + "/auth-check/write", auth_check),
]
