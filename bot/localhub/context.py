"""What every route needs: the parts of a hub, and who asks for what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from bot.localhub import protocol
from bot.localhub.accounts import Accounts, Identity, may_read_files, may_see, require_editor, require_writer
from bot.localhub.middleware import Faults, RequestLog
from bot.localhub.protocol import RepoType
from bot.localhub.records import RepoSettings
from bot.localhub.repo import Repo
from bot.localhub.store import Store
from bot.localhub.trust import Signer, Trust


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes of pages and parts, and how long an exchanged token is good for; tests make them small."""

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
    """endpoint, files_endpoint: scheme, host and port. The second has another host name than the first."""

    store: Store
    accounts: Accounts
    trust: Trust
    signer: Signer
    faults: Faults
    log: RequestLog
    limits: Limits
    endpoint: str
    files_endpoint: str


class Json(Response):
    """Dates and other strangers from somebody's YAML become text."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, default=str).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A repo that the asker may know of, and the asker."""

    repo: Repo
    settings: RepoSettings
    identity: Identity | None

    def require_files(self) -> None:
        if not may_read_files(self.identity, self.repo, self.settings):
            raise protocol.gated(self.repo.repo_id, authenticated=self.identity is not None)

    def require_write(self) -> Identity:
        """For its content."""
        return require_editor(self._require_login(), self.repo)

    def require_owner(self) -> Identity:
        """For its name, its settings and its end."""
        return require_writer(self._require_login(), self.repo.namespace)

    def _require_login(self) -> Identity:
        if self.identity is None:
            raise protocol.repo_not_found(authenticated=False)
        return self.identity


def context(request: Request) -> Context:
    found: Context = request.app.state.context
    return found


def identity(request: Request) -> Identity | None:
    """Who asks; noted for the log. Raises 401 for a bad token."""
    authorization = request.headers.get("authorization")
    known = context(request)
    who = known.trust.identify(authorization) or known.accounts.identify(authorization)
    request.scope["state"]["user"] = None if who is None else who.user
    return who


def param(request: Request, name: str) -> str:
    """A piece of the path, which is routed as it came over the wire."""
    return unquote(request.path_params[name])


def repo_type(request: Request) -> RepoType:
    kind = request.path_params.get("kind", "models")
    if kind == "models":
        return "model"
    if kind == "datasets":
        return "dataset"
    raise protocol.HubError(404, f"No such kind of repo: {kind}")


def asked(request: Request) -> Asked:
    """Raises the Hub's answers for a repo that is not there, hidden, moved or disabled."""
    who = identity(request)
    repo_id = f"{param(request, 'namespace')}/{param(request, 'name')}"
    return find(context(request), repo_id, repo_type(request), who)


def find(ctx: Context, repo_id: str, kind: RepoType, who: Identity | None) -> Asked:
    repo = ctx.store.repo(repo_id, repo_type=kind, authenticated=who is not None)
    settings = repo.settings()
    if not may_see(who, repo, settings):
        raise protocol.repo_not_found(authenticated=who is not None)
    if settings.disabled:
        raise protocol.disabled()
    return Asked(repo=repo, settings=settings, identity=who)


def flag(values: Mapping[str, str], name: str) -> bool:
    return values.get(name, "").lower() in ("1", "true")


def next_page(request: Request, cursor: str) -> dict[str, str]:
    """The header that leads to the page after this one: an absolute URL with the same questions in it."""
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
    """A text that a client must send; raises 400."""
    value = values.get(key) if isinstance(values, Mapping) else None
    if not isinstance(value, str) or not value:
        raise protocol.bad_request(f"`{key}` must be a text")
    return value


def number(values: object, key: str) -> int:
    """A size that a client must send; raises 400."""
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
