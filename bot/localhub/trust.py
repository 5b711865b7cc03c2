"""Signed links, as object storage has them, and trusted publishers: which workflow may publish to which repo."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jwt

from bot.files import locked, write_atomic
from bot.localhub.accounts import Identity
from bot.localhub.protocol import HubError

_LIFETIME_S = 3600


class Signer:
    """The key is kept on disk, so links outlive a restart."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            write_atomic(path, secrets.token_bytes(32), mode=0o600, concurrent=True)
        self._key = path.read_bytes()

    def url(self, base: str, method: str, path: str, **values: str) -> str:
        """path: not quoted yet; it is what the signature covers, with the method and all the values."""
        signed = {**values, "expires": str(int(time.time()) + _LIFETIME_S)}
        query = urlencode({**signed, "signature": self._signature(method, path, signed)})
        return f"{base}{quote(path)}?{query}"

    def check(self, method: str, path: str, query: Mapping[str, str]) -> None:
        """Raises 403 when the link was not made here, was changed, or is too old."""
        values = {key: value for key, value in query.items() if key != "signature"}
        expected = self._signature("GET" if method == "HEAD" else method, path, values)
        if not hmac.compare_digest(expected, query.get("signature", "")):
            raise HubError(403, "The link's signature does not match")
        if int(values["expires"]) < time.time():
            raise HubError(403, "The link has expired")

    def _signature(self, method: str, path: str, values: Mapping[str, str]) -> str:
        text = "\n".join([method, path, urlencode(sorted(values.items()))])
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


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
