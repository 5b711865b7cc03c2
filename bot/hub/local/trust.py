"""Trusted publishers: which workflow may have a token for which repo, and the tokens that are out.

As https://huggingface.co/docs/hub/trusted-publishers has it: claims are compared exactly, a token is good for an
hour and for one thing, and a refusal does not say which check failed.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from bot.hub.local import disk
from bot.hub.local.accounts import Identity

_ALGORITHMS = ["RS256", "ES256"]
_REQUIRED = ["aud", "exp", "iat", "iss", "sub"]


class RefusedError(Exception):
    """The id-token is not one for this resource, whatever the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """Who may have a token: id-tokens of this issuer that make all of these claims."""

    issuer: str
    claims: Mapping[str, str]


class Trust:
    """resource: `namespace/name` for a token that writes there, a user's name for one that only reads.

    The file is read again on every question, so a publisher that was added or removed counts at once. Tokens live
    in memory: none outlives the server.
    """

    def __init__(self, path: Path, *, token_s: float) -> None:
        self.path = path
        self._token_s = token_s
        self._file_lock = path.with_suffix(".lock")
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[Identity, float]] = {}

    # -- what is configured

    def add_issuer(self, issuer: str, public_key: str) -> None:
        """public_key: PEM, as the real Hub has it from the issuer's JWKS."""
        with disk.locked(self._file_lock):
            content = self._read()
            content["issuers"][issuer] = public_key
            self._write(content)

    def add_publisher(self, resource: str, publisher: Publisher) -> None:
        with disk.locked(self._file_lock):
            content = self._read()
            added = {"issuer": publisher.issuer, "claims": dict(publisher.claims)}
            content["publishers"].setdefault(resource, []).append(added)
            self._write(content)

    def remove_publishers(self, resource: str) -> None:
        with disk.locked(self._file_lock):
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

    # -- the tokens that are out

    def issue(self, identity: Identity) -> tuple[str, int]:
        """A token for this identity, and how many seconds it is good for."""
        token = f"hf_jwt_{secrets.token_hex(24)}"
        with self._lock:
            self._tokens[token] = (identity, time.monotonic() + self._token_s)
        return token, int(self._token_s)

    def identify(self, authorization: str | None) -> Identity | None:
        """None for a token that was not issued here, or is too old."""
        _, _, token = (authorization or "").partition(" ")
        with self._lock:
            identity, until = self._tokens.get(token.strip(), (None, 0.0))
        return identity if time.monotonic() < until else None

    def expire_all(self) -> None:
        with self._lock:
            self._tokens.clear()

    # -- below

    def _read(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {"issuers": {}, "publishers": {}}
        return content

    def _write(self, content: Mapping[str, Any]) -> None:
        disk.write_atomic(self.path, json.dumps(content, indent=2).encode())


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
            options={"require": _REQUIRED},
        )
    except jwt.PyJWTError as error:
        raise RefusedError(str(error)) from None
    return {**claims, **_shorthands(claims)}


def _shorthands(claims: Mapping[str, Any]) -> dict[str, str]:
    """`branch` and `workflow` as the Hub's settings page takes them: `main` and `watch.yml`.

    GitHub itself writes `refs/heads/main`, and claims the workflow's title as `workflow`.
    """
    shorthands = {}
    ref, workflow_ref = str(claims.get("ref", "")), str(claims.get("workflow_ref", ""))
    if ref.startswith("refs/heads/"):
        shorthands["branch"] = ref.removeprefix("refs/heads/")
    if workflow_ref:
        shorthands["workflow"] = workflow_ref.partition("@")[0].rpartition("/")[2]
    return shorthands
