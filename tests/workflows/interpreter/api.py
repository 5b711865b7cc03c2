"""GitHub's API as the jobs of a run meet it: a token may do what its job asked for, and runs are seen in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Self

from starlette.requests import Request

from tests.support.github_api.id_token import IdTokens
from tests.support.github_api.server import Account, GitHubApi, Job


class RunsApi(GitHubApi):
    """Use as a context manager. identities: what jobs with `id-token: write` can prove."""

    def __init__(self) -> None:
        super().__init__()
        self.identities = IdTokens()
        self._permissions: dict[str, Mapping[str, str]] = {}

    def __enter__(self) -> Self:
        self._stack.enter_context(self.identities)
        return super().__enter__()

    @property
    def granted(self) -> tuple[str, ...]:
        """The token of every job so far."""
        return tuple(self._permissions)

    # -- what a run needs

    def grant(self, permissions: Mapping[str, str]) -> str:
        """A job's GITHUB_TOKEN."""
        token = self.token()
        self._permissions[token] = permissions
        return token

    def identity(self, environment: str) -> dict[str, str]:
        subject = f"repo:{self.identities.claims['repository']}:environment:{environment}"
        self.identities.claims |= {"sub": subject, "environment": environment}
        return self.identities.environment

    def start_run(self, file: str) -> int:
        number = 1000 + len(self.runs)
        self.add_run(number, workflow=file, status="in_progress", created_at=datetime.now(UTC))
        return number

    def set_job(self, run_id: int, name: str, status: str, conclusion: str | None) -> None:
        jobs = self.runs[run_id].jobs
        jobs[:] = [job for job in jobs if job.name != name]
        ended = datetime.now(UTC) if status == "completed" else None
        jobs.append(Job(name=name, status=status, conclusion=conclusion, completed_at=ended))

    # -- what a token may do

    def account(self, request: Request) -> Account | None:
        known = super().account(request)
        granted = self._permissions.get(request.headers.get("authorization", "").partition(" ")[2])
        if known is None or granted is None:
            return known
        path = request.url.path
        scopes = ["issues"] if "/issues" in path else ["actions"] if "/actions" in path else ["contents"]
        # Comments on pull requests are issues' comments, for which the right to pull requests is enough.
        scopes += ["pull-requests"] if "/comments" in path else []
        scopes = ["pull-requests"] if "/pulls" in path else scopes
        return replace(known, may_write="write" in {granted.get(scope) for scope in scopes})
