"""What an operator sets on GitHub's pages, through the API behind them: secrets, environments, runs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nacl.encoding import Base64Encoder
from nacl.public import PrivateKey, SealedBox
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.github_api.id_token import REPOSITORY

TEMPLATE = "founders/awq-bot"
_REPO = f"/repos/{REPOSITORY}"
_ENVIRONMENT = f"{_REPO}/environments/{{environment}}"


@dataclass
class Settings:
    """template: a git checkout. files: where the repository's own lie once it is made. branches: of environments.

    dispatched: workflow files with the inputs of runs that were asked for.
    """

    template: Path
    files: Path
    private: bool | None = None
    secrets: dict[str, str] = field(default_factory=dict)
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    branches: dict[str, list[str]] = field(default_factory=dict)
    dispatched: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    key: PrivateKey = field(default_factory=PrivateKey.generate)

    @property
    def routes(self) -> list[Route]:
        def route(path: str, answer: Callable[[Request], Any], method: str) -> Route:
            return Route(path, answer, methods=[method])

        return [
            route(f"/repos/{TEMPLATE}/generate", self._generate, "POST"),
            route(f"{_REPO}/actions/secrets/public-key", self._public_key, "GET"),
            route(f"{_REPO}/actions/secrets/{{name}}", self._secret, "PUT"),
            route(_ENVIRONMENT, self._environment, "PUT"),
            route(f"{_ENVIRONMENT}/deployment-branch-policies", self._branch, "POST"),
            route(f"{_ENVIRONMENT}/secrets/public-key", self._public_key, "GET"),
            route(f"{_ENVIRONMENT}/secrets/{{name}}", self._secret, "PUT"),
            route(f"{_REPO}/actions/workflows/{{file}}/dispatches", self._dispatch, "POST"),
        ]

    async def _generate(self, request: Request) -> Response:
        """What git has of the template, and nothing that merely lies there."""
        asked = await request.json()
        if f"{asked['owner']}/{asked['name']}" != REPOSITORY:
            return JSONResponse({"message": "Not Found"}, status_code=404)
        command = ["git", "-C", str(self.template), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for name in filter(None, listed.split("\0")):
            (self.files / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.template / name, self.files / name)
        self.private = asked["private"]
        return JSONResponse({"full_name": REPOSITORY, "private": self.private}, status_code=201)

    # -- secrets

    async def _public_key(self, request: Request) -> Response:
        key = self.key.public_key.encode(Base64Encoder).decode()
        return JSONResponse({"key_id": "1", "key": key})

    async def _secret(self, request: Request) -> Response:
        sent, where = await request.json(), request.path_params
        value = SealedBox(self.key).decrypt(sent["encrypted_value"], encoder=Base64Encoder).decode()
        holder = self.environments[where["environment"]] if "environment" in where else self.secrets
        holder[where["name"]] = value
        return Response(status_code=201)

    # -- environments

    async def _environment(self, request: Request) -> Response:
        name, policy = request.path_params["environment"], (await request.json())["deployment_branch_policy"]
        self.environments.setdefault(name, {})
        if policy is not None and policy["custom_branch_policies"]:
            self.branches[name] = []
        return JSONResponse({"name": name})

    async def _branch(self, request: Request) -> Response:
        self.branches[request.path_params["environment"]].append((await request.json())["name"])
        return JSONResponse({}, status_code=200)

    # -- runs

    async def _dispatch(self, request: Request) -> Response:
        asked = await request.json()
        if asked["ref"] != "main":
            return JSONResponse({"message": "No ref found"}, status_code=422)
        self.dispatched.append((request.path_params["file"], asked.get("inputs", {})))
        return Response(status_code=204)
