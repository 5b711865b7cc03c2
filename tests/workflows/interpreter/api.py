"""GitHub's API as the jobs of a run meet it: a token may do what its job asked for, and runs are seen in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType

from starlette.requests import Request
from starlette.routing import BaseRoute

from tests.support.github_api.id_token import IdTokens
from tests.support.github_api.server import Account, GitHubApi, Issue, Job

_SCOPES = {"/issues": "issues", "/actions": "actions"}


class RunsApi(GitHubApi):
    """Use as a context manager. identities: what jobs with `id-token: write` can prove."""

    def __init__(self, routes: Sequence[BaseRoute] = ()) -> None:
        super().__init__(routes)
        self.identities = IdTokens()
        self._permissions: dict[str, Mapping[str, str]] = {}

    def __enter__(self) -> RunsApi:
        self.identities.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.identities.__exit__(kind, error, trace)

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

    def identity(self, environment: str, workflow: str) -> dict[str, str]:
        subject = {"sub": f"repo:{self.identities.claims['repository']}:environment:{environment}"}
        self.identities.claims |= subject | {"environment": environment}
        return self.identities.environment

    def start_run(self, file: str, event: str) -> int:
        number = 1000 + len(self.runs)
        self.add_run(number, workflow=file, status="in_progress", created_at=datetime.now(UTC))
        return number

    def set_job(self, run_id: int, name: str, status: str, conclusion: str | None) -> None:
        jobs = self.runs[run_id].jobs
        jobs[:] = [job for job in jobs if job.name != name]
        ended = datetime.now(UTC) if status == "completed" else None
        jobs.append(Job(name=name, status=status, conclusion=conclusion, completed_at=ended))

    def finish_run(self, run_id: int, conclusion: str) -> None:
        self.runs[run_id].status = "completed"

    # -- what a token may do

    def account(self, request: Request) -> Account | None:
        known = super().account(request)
        token = request.headers.get("authorization", "").partition(" ")[2]
        if known is None or token not in self._permissions:
            return known
        scope = next((name for part, name in _SCOPES.items() if part in request.url.path), "contents")
        rights = {self._permissions[token].get(each) for each in self._sufficient(scope, request)}
        return replace(known, may_write="write" in rights)

    def _sufficient(self, scope: str, request: Request) -> tuple[str, ...]:
        """Comments on pull requests are issues' comments, for which the right to pull requests is enough."""
        issue = self._issue_of(request.url.path)
        return (scope, "pull-requests") if issue is not None and issue.is_pull else (scope,)

    def _issue_of(self, path: str) -> Issue | None:
        found = re.search(r"/issues/(comments/)?(\d+)", path)
        if found is None:
            return None
        number = int(found[2])
        return self.issues.get(self.comments[number].issue if found[1] else number)
