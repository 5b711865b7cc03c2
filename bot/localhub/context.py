"""What every route needs: the parts of a hub, the repo and user of a request, and parsing of parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from bot.localhub import protocol
from bot.localhub.access import (
    Accounts,
    Identity,
    Signer,
    TrustedPublishers,
    may_read_files,
    may_see,
    require_editor,
    require_writer,
)
from bot.localhub.middleware import Faults, RequestLog
from bot.localhub.protocol import RepoSettings, RepoType
from bot.localhub.repo import Repo
from bot.localhub.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes of pages and parts, and the lifetime of an exchanged token; tests make them small."""

    list_page: int = 1000
    tree_page: int = 1000
    expanded_tree_page: int = 100
    commits_page: int = 50
    preupload_files: int = 1000
    paths_info_paths: int = 2000
    multipart_above_bytes: int = 64 * 1024 * 1024
    part_bytes: int = 16 * 1024 * 1024
    commit_body_bytes: int = 512 * 1024 * 1024
    exchanged_token_s: float = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """endpoint, files_endpoint: scheme, host and port. Their hosts differ, so the second gets no token."""

    store: Store
    accounts: Accounts
    trust: TrustedPublishers
    signer: Signer
    faults: Faults
    log: RequestLog
    limits: Limits
    endpoint: str
    files_endpoint: str


class Json(Response):
    """Values that JSON lacks, such as dates from a card's YAML, become text."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, default=str).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoAccess:
    """A repo that the user of a request may see."""

    repo: Repo
    settings: RepoSettings
    identity: Identity | None

    def require_files(self) -> None:
        if not may_read_files(self.identity, self.repo, self.settings):
            raise protocol.gated(self.repo.repo_id, authenticated=self.identity is not None)

    def require_write(self) -> Identity:
        """For the content of the repo."""
        return require_editor(self._require_login(), self.repo)

    def require_owner(self) -> Identity:
        """For the name, the settings and the deletion of the repo."""
        return require_writer(self._require_login(), self.repo.namespace)

    def _require_login(self) -> Identity:
        if self.identity is None:
            raise protocol.repo_not_found(authenticated=False)
        return self.identity


def context(request: Request) -> Context:
    found: Context = request.app.state.context
    return found


def identity(request: Request) -> Identity | None:
    """The user of the request, also recorded for the log. Raises 401 for a bad token."""
    authorization = request.headers.get("authorization")
    known = context(request)
    who = known.trust.identify(authorization) or known.accounts.identify(authorization)
    request.scope["state"]["user"] = None if who is None else who.user
    return who


def param(request: Request, name: str) -> str:
    """A decoded parameter of the path. Routes match the path as it was sent, still quoted."""
    return unquote(request.path_params[name])


def repo_type(request: Request) -> RepoType:
    kind = request.path_params.get("kind", "models")
    if kind == "models":
        return "model"
    if kind == "datasets":
        return "dataset"
    raise protocol.HubError(404, f"No such kind of repo: {kind}")


def open_repo(request: Request) -> RepoAccess:
    """The repo in the path. Raises the Hub's error for one that is missing, hidden, moved or disabled."""
    who = identity(request)
    repo_id = f"{param(request, 'namespace')}/{param(request, 'name')}"
    return open_repo_id(context(request), repo_id, repo_type(request), who)


def open_repo_id(ctx: Context, repo_id: str, kind: RepoType, who: Identity | None) -> RepoAccess:
    try:
        repo = ctx.store.repo(repo_id, repo_type=kind, authenticated=who is not None)
    except protocol.RepoMovedError as moved:
        # The new name of a private repo is as private as the repo.
        open_repo_id(ctx, moved.new_id, kind, who)
        raise
    settings = repo.settings()
    if not may_see(who, repo, settings):
        raise protocol.repo_not_found(authenticated=who is not None)
    if settings.disabled:
        raise protocol.disabled()
    return RepoAccess(repo=repo, settings=settings, identity=who)


def flag(values: Mapping[str, str], name: str) -> bool:
    return values.get(name, "").lower() in ("1", "true")


def next_page(request: Request, cursor: str) -> dict[str, str]:
    """The Link header for the next page: an absolute URL with the same query."""
    pairs = [(key, value) for key, value in request.query_params.multi_items() if key != "cursor"]
    url = f"{context(request).endpoint}{request.url.path}?{urlencode([*pairs, ('cursor', cursor)], safe='')}"
    return {"Link": f'<{url}>; rel="next"'}


def page_start(request: Request) -> int:
    cursor = request.query_params.get("cursor", "0")
    if not cursor.isdecimal():
        raise protocol.bad_request("Invalid cursor")
    return int(cursor)


def quoted(path: str) -> str:
    return quote(path, safe="/")


def text(values: object, key: str) -> str:
    """A required string; raises 400."""
    value = values.get(key) if isinstance(values, Mapping) else None
    if not isinstance(value, str) or not value:
        raise protocol.bad_request(f"`{key}` must be a string")
    return value


def number(values: object, key: str) -> int:
    """A required size or number; raises 400."""
    value = values.get(key) if isinstance(values, Mapping) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise protocol.bad_request(f"`{key}` must be a whole number")
    return value


async def json_body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except ValueError:
        raise protocol.bad_request("The body is not JSON") from None
    if not isinstance(body, dict):
        raise protocol.bad_request("The body must be a JSON object")
    return body
