"""Registration of just-in-time runners, as GitHub's REST API does it."""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


@dataclass
class JitRunners:
    """status: what is answered instead, when it is not 201. leaked: processes whose arguments held the token."""

    token: str = field(default_factory=lambda: f"github_pat_{secrets.token_hex(20)}")
    status: int = 201
    registered: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)

    @property
    def routes(self) -> list[Route]:
        path = "/actions/runners/generate-jitconfig"
        return [
            Route(f"/{scope}{path}", self._register, methods=["POST"])
            for scope in ("repos/{owner}/{name}", "orgs/{name}")
        ]

    async def _register(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        self.leaked += _processes_that_show(self.token)
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"message": "Bad credentials", "status": "401"}, status_code=401)
        if self.status != 201:
            return JSONResponse({"message": "Not this time"}, status_code=self.status)
        body = await request.json()
        assert isinstance(body["runner_group_id"], int)
        self.registered.append(body)
        runner = {"id": len(self.registered), "name": body["name"], "os": "unknown", "status": "offline"}
        answer = {"runner": runner, "encoded_jit_config": jit_config(body["name"])}
        return Response(json.dumps(answer, indent=2), status_code=201, media_type="application/json")


def jit_config(name: str) -> str:
    return base64.b64encode(json.dumps({".runner": name, "padding": "?>?"}).encode()).decode()


def _processes_that_show(secret: str) -> list[str]:
    """As `ps` sees them: every account on the machine can read arguments."""
    shown = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        shown += [words] if secret in words else []
    return shown
