"""Who may do what: users with their organisations and tokens, trusted publishers, and signed links."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

import jwt

from bot.files import locked, write_atomic
from bot.localhub.protocol import HubError, RepoSettings, invalid_token
from bot.localhub.repo import Repo

Role = Literal["read", "write"]
_ALGORITHMS = ["RS256", "ES256"]
_REQUIRED_CLAIMS = ["aud", "exp", "iat", "iss", "sub"]
_LINK_LIFETIME_S = 3600
_WRITING_ORG_ROLES = frozenset({"write", "admin"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The owner of a request's token. orgs: name → role in it (read, write, admin).

    only: the keys of the repos that an exchanged token is limited to; None for an account's own token.
    """

    user: str
    role: Role
    orgs: Mapping[str, str]
    only: frozenset[str] | None = None

    def is_member_of(self, namespace: str) -> bool:
        return namespace == self.user or namespace in self.orgs

    def may_open_private(self, repo: Repo) -> bool:
        return self.is_member_of(repo.namespace) if self.only is None else repo.key in self.only

    def may_write_to(self, namespace: str) -> bool:
        member = namespace == self.user or self.orgs.get(namespace) in _WRITING_ORG_ROLES
        return self.role == "write" and member


def may_see(identity: Identity | None, repo: Repo, settings: RepoSettings) -> bool:
    return not settings.private or (identity is not None and identity.may_open_private(repo))


def may_read_files(identity: Identity | None, repo: Repo, settings: RepoSettings) -> bool:
    if not settings.gated:
        return True
    return identity is not None and (
        identity.may_open_private(repo)
        or identity.is_member_of(repo.namespace)
        or identity.user in settings.granted
    )


def require_writer(identity: Identity, namespace: str) -> Identity:
    """For creating repos, and for their settings and names; raises 403."""
    if identity.only is not None:
        raise HubError(403, "This token may only change the content of one repo")
    if identity.may_write_to(namespace):
        return identity
    if identity.role != "write":
        raise HubError(403, "This token has no write access: use a token with the write role")
    raise HubError(403, f"You don't have the rights to write under the namespace {namespace!r}")


def require_editor(identity: Identity, repo: Repo) -> Identity:
    """For commits, branches and tags; raises 403."""
    if identity.only is not None and identity.role == "write" and identity.may_open_private(repo):
        return identity
    return require_writer(identity, repo.namespace)


class Accounts:
    """Users and tokens, in a file that is read for every request: edits and revoked tokens take effect at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path.with_suffix(".lock")
        if not path.exists():
            owners = [("bot", "write"), ("bot", "read"), ("reader", "read")]
            tokens = {_new_token(): {"user": user, "role": role} for user, role in owners}
            users = {"bot": {"orgs": {"quantized": "write"}}, "reader": {"orgs": {}}}
            self._write({"users": users, "tokens": tokens})

    def add_token(self, user: str, *, role: Role = "write", orgs: Mapping[str, str] | Iterable[str] = ()) -> str:
        """A new token. Creates the user if missing, and adds it to the organisations (role `write` by default)."""
        memberships = dict(orgs) if isinstance(orgs, Mapping) else dict.fromkeys(orgs, "write")
        token = _new_token()
        with locked(self._lock):
            content = self._read()
            content["users"].setdefault(user, {"orgs": {}})["orgs"].update(memberships)
            content["tokens"][token] = {"user": user, "role": role}
            self._write(content)
        return token

    def revoke_token(self, token: str) -> None:
        with locked(self._lock):
            content = self._read()
            content["tokens"].pop(token, None)
            self._write(content)

    def token_of(self, user: str, *, role: Role = "write") -> str:
        """The user's first token with that role; raises KeyError."""
        for token, owner in self._read()["tokens"].items():
            if owner == {"user": user, "role": role}:
                return str(token)
        raise KeyError(f"{user} has no {role} token")

    def identify(self, authorization: str | None) -> Identity | None:
        """None for an anonymous request; raises 401 for an unknown or revoked token."""
        if authorization is None:
            return None
        scheme, _, token = authorization.partition(" ")
        content = self._read()
        owner = content["tokens"].get(token.strip())
        if scheme.lower() != "bearer" or owner is None:
            raise invalid_token()
        orgs = content["users"].get(owner["user"], {}).get("orgs", {})
        return Identity(user=owner["user"], role=owner["role"], orgs=orgs)

    def has_user(self, user: str) -> bool:
        return user in self._read()["users"]

    def memberships(self, user: str) -> dict[str, str]:
        """Organisation → role of the user in it."""
        orgs: dict[str, str] = self._read()["users"].get(user, {}).get("orgs", {})
        return orgs

    def _read(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.path.read_bytes())
        return content

    def _write(self, content: Mapping[str, Any]) -> None:
        write_atomic(self.path, json.dumps(content, indent=2).encode(), mode=0o600, concurrent=True)


def _new_token() -> str:
    return f"hf_{secrets.token_hex(17)}"


class RefusedError(Exception):
    """The id-token is not accepted for this resource."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """Accepts the id-tokens of this issuer with all of these claims."""

    issuer: str
    claims: Mapping[str, str]


class TrustedPublishers:
    """Which workflow may publish to which repo: https://huggingface.co/docs/hub/trusted-publishers

    resource: `namespace/name` for a token that writes there, a user's name for one that only reads. The file is
    read for every request, so changes take effect at once. Issued tokens are in memory only.
    """

    def __init__(self, path: Path, *, token_s: float) -> None:
        self.path = path
        self._token_s = token_s
        self._file_lock = path.with_suffix(".lock")
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[Identity, float]] = {}

    def add_issuer(self, issuer: str, public_key: str) -> None:
        """public_key: PEM. The real Hub fetches it from the issuer's JWKS."""
        with locked(self._file_lock):
            content = self._read()
            content["issuers"][issuer] = public_key
            self._write(content)

    def add_publisher(self, resource: str, publisher: Publisher) -> None:
        with locked(self._file_lock):
            content = self._read()
            added = {"issuer": publisher.issuer, "claims": dict(publisher.claims)}
            content["publishers"].setdefault(resource, []).append(added)
            self._write(content)

    def remove_publishers(self, resource: str) -> None:
        with locked(self._file_lock):
            content = self._read()
            content["publishers"].pop(resource, None)
            self._write(content)

    def check(self, id_token: str, *, resource: str, audience: str) -> None:
        """Raises RefusedError unless a publisher of the resource matches."""
        content = self._read()
        claims = _verified(id_token, content["issuers"], audience)
        for publisher in content["publishers"].get(resource, []):
            wanted = publisher["claims"]
            if publisher["issuer"] == claims["iss"] and all(claims.get(key) == wanted[key] for key in wanted):
                return
        raise RefusedError("no publisher matches")

    def issue(self, identity: Identity) -> tuple[str, int]:
        """A new token for this identity, and its lifetime in seconds."""
        token = f"hf_jwt_{secrets.token_hex(24)}"
        with self._lock:
            self._tokens[token] = (identity, time.monotonic() + self._token_s)
        return token, int(self._token_s)

    def identify(self, authorization: str | None) -> Identity | None:
        """None for a token that was not issued here or has expired."""
        _, _, token = (authorization or "").partition(" ")
        with self._lock:
            identity, until = self._tokens.get(token.strip(), (None, 0.0))
        return identity if time.monotonic() < until else None

    def expire_all(self) -> None:
        with self._lock:
            self._tokens.clear()

    def _read(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {"issuers": {}, "publishers": {}}
        return content

    def _write(self, content: Mapping[str, Any]) -> None:
        write_atomic(self.path, json.dumps(content, indent=2).encode(), concurrent=True)


def _verified(id_token: str, keys: Mapping[str, str], audience: str) -> dict[str, Any]:
    try:
        issuer = str(jwt.decode(id_token, options={"verify_signature": False}).get("iss"))
        if issuer not in keys:
            raise RefusedError("unknown issuer")
        claims: dict[str, Any] = jwt.decode(
            id_token,
            keys[issuer],
            algorithms=_ALGORITHMS,
            audience=audience,
            issuer=issuer,
            options={"require": _REQUIRED_CLAIMS},
        )
    except jwt.PyJWTError as error:
        raise RefusedError(str(error)) from None
    return {**claims, **_shorthands(claims)}


def _shorthands(claims: Mapping[str, Any]) -> dict[str, str]:
    """`branch` and `workflow` as on the Hub's settings page: `main` and `watch.yml`.

    GitHub's `ref` is `refs/heads/main`, and its `workflow` is the workflow's title:
    https://docs.github.com/en/actions/reference/security/oidc
    """
    shorthands = {}
    ref, workflow_ref = str(claims.get("ref", "")), str(claims.get("workflow_ref", ""))
    if ref.startswith("refs/heads/"):
        shorthands["branch"] = ref.removeprefix("refs/heads/")
    if workflow_ref:
        shorthands["workflow"] = workflow_ref.partition("@")[0].rpartition("/")[2]
    return shorthands


class Signer:
    """Signed links, as object storage has them. The key is kept on disk, so links outlive a restart."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            write_atomic(path, secrets.token_bytes(32), mode=0o600, concurrent=True)
        self._key = path.read_bytes()

    def url(self, base: str, method: str, path: str, **values: str) -> str:
        """path: not quoted yet. The signature covers it, the method and all the values."""
        signed = {**values, "expires": str(int(time.time()) + _LINK_LIFETIME_S)}
        query = urlencode({**signed, "signature": self._signature(method, path, signed)})
        return f"{base}{quote(path)}?{query}"

    def check(self, method: str, path: str, query: Mapping[str, str]) -> None:
        """Raises 403 when the signature does not match or the link has expired."""
        values = {key: value for key, value in query.items() if key != "signature"}
        expected = self._signature("GET" if method == "HEAD" else method, path, values)
        if not hmac.compare_digest(expected, query.get("signature", "")):
            raise HubError(403, "The link's signature does not match")
        if int(values["expires"]) < time.time():
            raise HubError(403, "The link has expired")

    def _signature(self, method: str, path: str, values: Mapping[str, str]) -> str:
        text = "\n".join([method, path, urlencode(sorted(values.items()))])
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()
