"""What opens in a browser: repos with their cards, files and revisions. Other clients get plain text."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from bot.localhub import protocol
from bot.localhub.access import may_read_files, may_see
from bot.localhub.card import REPO_ID, body, strings
from bot.localhub.context import RepoAccess, context, identity, open_repo, param, quoted
from bot.localhub.info import RepoFacts, tree_items
from bot.localhub.markdown import Links, to_html
from bot.localhub.protocol import REPO_TYPES, Commit, FileEntry, RepoSettings
from bot.localhub.repo import HEADS, PULLS, TAGS, Repo
from bot.text import render, size

# The parser needs quadratic time for text that was written to keep it busy: a second at this size.
_LARGEST_CARD_BYTES = 100_000
_LARGEST_PREVIEW_BYTES = 500_000
_IMAGES = (".gif", ".jpeg", ".jpg", ".png", ".webp")


def home(request: Request) -> Response:
    repos = {repo_type: list(_visible(request, repo_type)) for repo_type in REPO_TYPES}
    if not wants_html(request):
        urls = [f"{context(request).endpoint}{_url(repo)}" for found in repos.values() for repo in found]
        return PlainTextResponse("\n".join(["A local Hub. Repos:", "", *urls]) + "\n")
    kinds = [
        {"title": f"{repo_type.title()}s", "repos": [_summary(repo) for repo in found]}
        for repo_type, found in repos.items()
    ]
    return _page(request, "hub_home.html.jinja", kinds=kinds)


def repo_page(request: Request) -> Response:
    """A revision's card and files, or the files of one folder of it."""
    found, revision, commit = _at_revision(request)
    folder = param(request, "path").strip("/") if "path" in request.path_params else ""
    items = tree_items(commit.files, folder=folder)
    if folder and not items:
        raise protocol.entry_not_found(f"{folder} does not exist on {revision}", commit=commit.sha)
    if not wants_html(request):
        return _plain_listing(found, revision, commit)
    card, why_not = (None, "") if folder else _card(found, revision, commit)
    return _page(
        request,
        "hub_tree.html.jinja",
        repo=_facts(found, commit),
        revision=revision,
        folder=folder,
        items=[_row(found.repo, revision, item) for item in items],
        parent_url=_tree_url(found.repo, revision, folder.rpartition("/")[0]),
        card=card,
        no_card=why_not,
    )


def file_page(request: Request) -> Response:
    found, revision, commit = _at_revision(request)
    found.require_files()
    path = param(request, "path")
    entry = commit.files.get(path)
    if entry is None:
        raise protocol.entry_not_found(commit=commit.sha)
    download_url = f"{_url(found.repo)}/resolve/{quote(revision, safe='')}/{quoted(path)}"
    if not wants_html(request):
        return RedirectResponse(download_url)
    file = {
        "path": path,
        "size_bytes": entry.size_bytes,
        "sha256": entry.sha256,
        "download_url": download_url,
        "is_image": path.lower().endswith(_IMAGES),
        "text": _text(found.repo, entry),
    }
    return _page(
        request,
        "hub_file.html.jinja",
        repo=_facts(found, commit),
        revision=revision,
        tree_url=_tree_url(found.repo, revision),
        file=file,
    )


def error_page(request: Request, error: protocol.HubError) -> Response:
    hidden = "There is no such repo, or it is private."
    message = hidden if error.code == "RepoNotFound" else error.message
    return _page(request, "hub_error.html.jinja", status=error.status, message=message)


def _page(request: Request, template: str, *, status: int = 200, **facts: object) -> Response:
    hub, nonce = context(request), secrets.token_urlsafe(16)
    html = render(template, endpoint=hub.endpoint, nonce=nonce, status=status, **facts)
    # Nothing on a page runs; pictures come from this server, which sends large files from its second address.
    # https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/Content-Security-Policy
    policy = (
        f"default-src 'none'; img-src 'self' {hub.files_endpoint}; style-src 'nonce-{nonce}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
        "Vary": "Accept",
    }
    return HTMLResponse(html, status_code=status, headers=headers)


def wants_html(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def _at_revision(request: Request) -> tuple[RepoAccess, str, Commit]:
    found = open_repo(request)
    revision = param(request, "rev") if "rev" in request.path_params else "main"
    return found, revision, found.repo.commit_at(revision)


def _visible(request: Request, repo_type: protocol.RepoType) -> Iterator[Repo]:
    who = identity(request)
    return (repo for repo in context(request).store.repos(repo_type) if may_see(who, repo, repo.settings()))


def _summary(repo: Repo) -> dict[str, Any]:
    """A line of the list of repos."""
    settings, commit = repo.settings(), repo.commit_at(HEADS + "main")
    facts = RepoFacts(repo, settings, commit)
    return {
        "id": repo.repo_id,
        "url": _url(repo),
        "updated": _date(commit),
        "size_bytes": sum(entry.size_bytes for entry in commit.files.values()),
        "chips": [*_access(settings), *_chips(facts)],
    }


def _facts(found: RepoAccess, commit: Commit) -> dict[str, Any]:
    repo, settings = found.repo, found.settings
    facts = RepoFacts(repo, settings, commit)
    return {
        "id": repo.repo_id,
        "namespace": repo.namespace,
        "name": repo.repo_id.partition("/")[2],
        "url": _url(repo),
        "warnings": [
            word for word, is_set in (("private", settings.private), ("gated", settings.gated)) if is_set
        ],
        "chips": _chips(facts),
        "facts": _about(facts, commit),
        "refs": _refs(repo),
    }


def _about(facts: RepoFacts, commit: Commit) -> list[tuple[str, str, str]]:
    """(name, value, link or nothing) of what a card and the headers of the weights say."""
    known = facts.expanded(["cardData", "safetensors"])
    metadata, weights = known["cardData"] or {}, known.get("safetensors")
    rows = [("licence", ", ".join(strings(metadata.get("license", []))), "")]
    for name in strings(metadata.get("base_model", [])):
        rows.append(("base model", name, f"/{name}" if REPO_ID.fullmatch(name) else ""))
    if weights:
        rows.append(("tensors", f"{weights['total']:,} values ({', '.join(weights['parameters'])})", ""))
    size_bytes = sum(entry.size_bytes for entry in commit.files.values())
    rows.append(("size", size(size_bytes), ""))
    rows += [("commit", commit.sha[:8], ""), ("message", commit.title, ""), ("date", _date(commit), "")]
    return [row for row in rows if row[1]]


def _access(settings: RepoSettings) -> list[str]:
    return [name for name, is_set in (("private", settings.private), ("gated", settings.gated)) if is_set]


def _chips(facts: RepoFacts) -> list[str]:
    """The tags that say what it is; base models and the licence have lines of their own."""
    return [tag for tag in facts.tags() if not tag.startswith(("base_model:", "license:", "region:"))]


def _refs(repo: Repo) -> list[tuple[str, list[dict[str, str]]]]:
    kinds = (("Branches", HEADS), ("Tags", TAGS), ("Pull requests", PULLS))
    found = []
    for title, prefix in kinds:
        # The revision of a pull request is the full ref.
        cut = 0 if prefix == PULLS else len(prefix)
        names = [name[cut:] for name in repo.refs() if name.startswith(prefix)]
        found.append((title, [{"name": name, "url": _tree_url(repo, name)} for name in names]))
    return [(title, refs) for title, refs in found if refs]


def _card(found: RepoAccess, revision: str, commit: Commit) -> tuple[Markup | None, str]:
    """The README as HTML, or why there is none."""
    entry = commit.files.get("README.md")
    if entry is None:
        return None, "This revision has no README.md."
    if not may_read_files(found.identity, found.repo, found.settings):
        return None, "This repo is gated, and a browser sends no token: its files are not shown."
    if entry.size_bytes > _LARGEST_CARD_BYTES:
        return None, f"README.md is not shown here: it is larger than {_LARGEST_CARD_BYTES:,} bytes."
    base, quoted_revision = _url(found.repo), quote(revision, safe="")
    links = Links(images=f"{base}/resolve/{quoted_revision}/", files=f"{base}/blob/{quoted_revision}/")
    return to_html(body(found.repo.read(entry).decode("utf-8", "replace")), links), ""


def _text(repo: Repo, entry: FileEntry) -> str | None:
    """None for what is large or is no text."""
    if entry.is_lfs or entry.size_bytes > _LARGEST_PREVIEW_BYTES:
        return None
    try:
        text = repo.read(entry).decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _row(repo: Repo, revision: str, item: dict[str, Any]) -> dict[str, Any]:
    path, is_folder = str(item["path"]), item["type"] == "directory"
    name = path.rpartition("/")[2]
    return {
        "name": f"{name}/" if is_folder else name,
        "url": _tree_url(repo, revision, path) if is_folder else _blob_url(repo, revision, path),
        "size_bytes": None if is_folder else item["size"],
    }


def _url(repo: Repo) -> str:
    return f"{'/datasets' if repo.repo_type == 'dataset' else ''}/{repo.repo_id}"


def _tree_url(repo: Repo, revision: str, folder: str = "") -> str:
    base = f"{_url(repo)}/tree/{quote(revision, safe='')}"
    return f"{base}/{quoted(folder)}" if folder else base


def _blob_url(repo: Repo, revision: str, path: str) -> str:
    return f"{_url(repo)}/blob/{quote(revision, safe='')}/{quoted(path)}"


def _date(commit: Commit) -> str:
    return f"{commit.date[:16].replace('T', ' ')} UTC"


def _plain_listing(found: RepoAccess, revision: str, commit: Commit) -> Response:
    """The files, and the README unless the repo is gated."""
    lines = [
        f"{found.repo.repo_id} @ {revision}",
        f"{commit.sha}  {commit.date}  {commit.author}: {commit.title}",
        "",
    ]
    lines += [f"{entry.size_bytes:>14,}  {path}" for path, entry in commit.files.items()]
    text = "\n".join(lines) + "\n"
    if "README.md" in commit.files and not found.settings.gated:
        readme = found.repo.read(commit.files["README.md"]).decode("utf-8", "replace")
        text += f"\n{'=' * 80}\n\n{readme}"
    return PlainTextResponse(text)


_REPO = "/{namespace}/{name}"
routes = [
    Route("/", home),
    *(
        Route(prefix + _REPO + rest, page)
        for prefix in ("", "/{kind}")
        for rest, page in (
            ("", repo_page),
            ("/tree/{rev}", repo_page),
            ("/tree/{rev}/{path:path}", repo_page),
            ("/commit/{rev}", repo_page),
            ("/blob/{rev}/{path:path}", file_page),
        )
    ),
]
