"""GitHub's issuer of id-tokens: the part of a job's environment that proves which workflow is running.

hub.trust_issuer(ISSUER, public_key())
with IdTokens() as tokens:
    environment |= tokens.environment
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.github_api.server import REPOSITORY
from tests.support.github_api.serving import served

ISSUER = "https://token.actions.githubusercontent.com"
PATH = "/_services/id-token"
LIFETIME_S = 300
# As GitHub writes them for the publishing job of a scheduled run.
CLAIMS: dict[str, Any] = {
    "sub": f"repo:{REPOSITORY}:environment:publish",
    "repository": REPOSITORY,
    "repository_owner": "someone",
    "ref": "refs/heads/main",
    "ref_type": "branch",
    "environment": "publish",
    "event_name": "schedule",
    "workflow": "Watch",
    "workflow_ref": f"{REPOSITORY}/.github/workflows/watch.yml@refs/heads/main",
    "job_workflow_ref": f"{REPOSITORY}/.github/workflows/model.yml@refs/heads/main",
    "runner_environment": "github-hosted",
    "run_id": "1",
}


@cache
def _signing_key(name: str) -> rsa.RSAPrivateKey:
    """Making one takes a while, so each name has one for all tests."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def sign(audience: str, claims: Mapping[str, Any] = CLAIMS, *, age_s: float = 0, key: str = "github") -> str:
    """An id-token (a JWT). age_s: how long ago it was issued; key: any other name is another issuer's key."""
    issued = int(time.time() - age_s)
    times = {"iat": issued, "nbf": issued, "exp": issued + LIFETIME_S}
    standard = {"iss": ISSUER, "aud": audience, "jti": secrets.token_hex(8)} | times
    return jwt.encode(standard | dict(claims), _signing_key(key), algorithm="RS256", headers={"kid": key})


def public_key() -> str:
    pem = (
        _signing_key("github")
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return pem.decode()


class IdTokens:
    """Served on its own port. claims: of the job that asks; may be changed while it runs."""

    def __init__(self, claims: Mapping[str, Any] = CLAIMS) -> None:
        self.claims = dict(claims)
        self.request_token = f"ghs_{secrets.token_hex(18)}"
        self.asked = 0
        self._stack = contextlib.ExitStack()
        self._url = ""

    @property
    def environment(self) -> dict[str, str]:
        """What a job with `permissions: id-token: write` finds."""
        return {
            "GITHUB_ACTIONS": "true",
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self._url}{PATH}?api-version=2.0",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": self.request_token,
        }

    def __enter__(self) -> IdTokens:
        app = Starlette(routes=[Route(PATH, self._answer)])
        self._url = self._stack.enter_context(served(app))
        return self

    def __exit__(self, *ended: object) -> None:
        self._stack.close()

    def _answer(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {self.request_token}":
            return JSONResponse({"message": "Bad credentials"}, status_code=401)
        self.asked += 1
        audience = request.query_params.get("audience", "https://github.com/someone")
        return JSONResponse({"count": 1, "value": sign(audience, self.claims)})
