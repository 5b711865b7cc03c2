"""What a person sees who opens a link that a client printed: plain text, enough to look around."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from bot.localhub.accounts import may_see
from bot.localhub.context import asked, context, identity, param
from bot.localhub.protocol import REPO_TYPES
from bot.localhub.records import Commit


def home(request: Request) -> Response:
    who = identity(request)
    lines = ["A local Hub. Repos:", ""]
    for repo_type in REPO_TYPES:
        for repo in context(request).store.repos(repo_type):
            if may_see(who, repo, repo.settings()):
                prefix = "/datasets/" if repo_type == "dataset" else "/"
                lines.append(f"{context(request).endpoint}{prefix}{repo.repo_id}")
    return PlainTextResponse("\n".join(lines) + "\n")


def repo_page(request: Request) -> Response:
    """The files, and the README when the asker may read files."""
    found = asked(request)
    revision = param(request, "rev") if "rev" in request.path_params else "main"
    commit = found.repo.commit_at(revision)
    text = _listing(f"{found.repo.repo_id} @ {revision}", commit)
    if "README.md" in commit.files and not found.settings.gated:
        readme = found.repo.read(commit.files["README.md"]).decode("utf-8", "replace")
        text += f"\n{'=' * 80}\n\n{readme}"
    return PlainTextResponse(text)


def _listing(title: str, commit: Commit) -> str:
    lines = [title, f"{commit.sha}  {commit.date}  {commit.author}: {commit.title}", ""]
    lines += [f"{entry.size_bytes:>14,}  {path}" for path, entry in commit.files.items()]
    return "\n".join(lines) + "\n"


routes = [
    Route("/", home),
    *(
        Route(prefix + "/{namespace}/{name}" + rest, repo_page)
        for prefix in ("", "/{kind}")
        for rest in ("", "/tree/{rev}", "/commit/{rev}")
    ),
]
