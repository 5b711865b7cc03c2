"""Who may do what: users, their organisations, and tokens that read or write. Kept in one private file."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bot.files import locked, write_atomic
from bot.localhub.protocol import HubError, invalid_token
from bot.localhub.records import RepoSettings
from bot.localhub.repo import Repo

Role = Literal["read", "write"]
_WRITING_ORG_ROLES = frozenset({"write", "admin"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose token came with a request. orgs: name → role in it (read, write, admin).

    only: the repos, by their key, whose content an exchanged token is for; None for a token of an account, which
    may do what the account may.
    """

    user: str
    role: Role
    orgs: Mapping[str, str]
    only: frozenset[str] | None = None

    def is_member_of(self, namespace: str) -> bool:
        return namespace == self.user or namespace in self.orgs

    def reaches(self, repo: Repo) -> bool:
        """Whether it sees the repo although it is private."""
        return self.is_member_of(repo.namespace) if self.only is None else repo.key in self.only

    def may_write_to(self, namespace: str) -> bool:
        member = namespace == self.user or self.orgs.get(namespace) in _WRITING_ORG_ROLES
        return self.role == "write" and member


def may_see(identity: Identity | None, repo: Repo, settings: RepoSettings) -> bool:
    return not settings.private or (identity is not None and identity.reaches(repo))


def may_read_files(identity: Identity | None, repo: Repo, settings: RepoSettings) -> bool:
    if not settings.gated:
        return True
    return identity is not None and (
        identity.reaches(repo) or identity.is_member_of(repo.namespace) or identity.user in settings.granted
    )


class Accounts:
    """The file is read again on every question, so an edit or a revoked token counts at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path.with_suffix(".lock")
        if not path.exists():
            owners = [("bot", "write"), ("bot", "read"), ("reader", "read")]
            tokens = {_new_token(): {"user": user, "role": role} for user, role in owners}
            users = {"bot": {"orgs": {"quantized": "write"}}, "reader": {"orgs": {}}}
            self._write({"users": users, "tokens": tokens})

    def add_token(self, user: str, *, role: Role = "write", orgs: Mapping[str, str] | Iterable[str] = ()) -> str:
        """A new token; the user is made when missing, and joins the organisations (as `write` if not said)."""
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
        """The first token of that kind; raises KeyError."""
        for token, owner in self._read()["tokens"].items():
            if owner == {"user": user, "role": role}:
                return str(token)
        raise KeyError(f"{user} has no {role} token")

    def identify(self, authorization: str | None) -> Identity | None:
        """None for an anonymous request; raises 401 for a token that is not, or no longer, known."""
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
        """name → role of the organisations that a user is in."""
        orgs: dict[str, str] = self._read()["users"].get(user, {}).get("orgs", {})
        return orgs

    def _read(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.path.read_bytes())
        return content

    def _write(self, content: Mapping[str, Any]) -> None:
        write_atomic(self.path, json.dumps(content, indent=2).encode(), mode=0o600, concurrent=True)


def _new_token() -> str:
    return f"hf_{secrets.token_hex(17)}"


def require_writer(identity: Identity, namespace: str) -> Identity:
    """For what changes more than content: creating, settings, names."""
    if identity.only is not None:
        raise HubError(403, "This token may only change the content of one repo")
    if identity.may_write_to(namespace):
        return identity
    if identity.role != "write":
        raise HubError(403, "This token has no write access: use a token with the write role")
    raise HubError(403, f"You don't have the rights to write under the namespace {namespace!r}")


def require_editor(identity: Identity, repo: Repo) -> Identity:
    """For commits, branches and tags."""
    if identity.only is not None and identity.role == "write" and identity.reaches(repo):
        return identity
    return require_writer(identity, repo.namespace)
