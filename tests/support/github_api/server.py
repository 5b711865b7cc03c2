"""GitHub's API as far as the bot uses it, on the loopback interface: issues, comments, runs, jobs, who am I.

Response shapes are those of the REST API's reference, with the fields that clients read. Times are given by tests.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from bot.localhub.middleware import Fault, Faults
from tests.support.github_api.repository import GitRepository
from tests.support.github_api.serving import served

REPOSITORY = "someone/awq-bot"
ACTIONS = "github-actions[bot]"
_REPO = f"/repos/{REPOSITORY}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    login: str
    may_write: bool = True

    @property
    def user(self) -> dict[str, Any]:
        kind = "Bot" if self.login.endswith("[bot]") else "User"
        return {"login": self.login, "id": abs(hash(self.login)) % 10**6, "type": kind}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. login: the account, empty for an unknown token."""

    method: str
    path: str
    login: str
    status: int


@dataclass(slots=True, kw_only=True)
class Issue:
    number: int
    author: str
    title: str
    body: str
    labels: list[str]
    state: str = "open"
    is_pull: bool = False


@dataclass(slots=True, kw_only=True)
class Comment:
    number: int
    issue: int
    author: str
    body: str


@dataclass(slots=True, kw_only=True)
class Job:
    name: str
    status: str = "completed"
    conclusion: str | None = "success"
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    runner: str | None = "GitHub Actions 1"


@dataclass(slots=True, kw_only=True)
class Run:
    number: int
    workflow: str = "watch.yml"
    status: str = "completed"
    created_at: datetime = field(default_factory=lambda: datetime(2026, 11, 1, tzinfo=UTC))
    jobs: list[Job] = field(default_factory=list)


class GitHubApi:
    """Use as a context manager. What tests look at and set up: issues, comments, runs, faults, requests.

    states: of workflows, by file; `active` if nothing else is said. dispatched: each workflow that was started by
    hand, and its branch.
    """

    def __init__(self) -> None:
        self.issues: dict[int, Issue] = {}
        self.comments: dict[int, Comment] = {}
        self.runs: dict[int, Run] = {}
        self.enabled: list[str] = []
        self.dispatched: list[tuple[str, str]] = []
        self.states: dict[str, str] = {}
        self.faults = Faults()
        self.requests: list[Asked] = []
        self._accounts: dict[str, Account] = {}
        self._numbers = itertools.count(1)
        self._stack = contextlib.ExitStack()
        self.url = ""
        self.git = GitRepository(lambda: f"{self.url}{_REPO}", self._login, self._numbers)
        self._app = Starlette(
            routes=[
                Route("/graphql", self._graphql, methods=["POST"]),
                Route("/user", self._user),
                Route(f"{_REPO}/issues", self._issues, methods=["GET"]),
                Route(f"{_REPO}/issues", self._create_issue, methods=["POST"]),
                Route(f"{_REPO}/issues/comments/{{number:int}}", self._edit_comment, methods=["PATCH"]),
                Route(f"{_REPO}/issues/{{number:int}}", self._issue, methods=["GET", "PATCH"]),
                Route(f"{_REPO}/issues/{{number:int}}/comments", self._comments, methods=["GET", "POST"]),
                Route(f"{_REPO}/actions/workflows/{{file}}", self._workflow),
                Route(f"{_REPO}/actions/workflows/{{file}}/runs", self._runs),
                Route(f"{_REPO}/actions/workflows/{{file}}/enable", self._enable, methods=["PUT"]),
                Route(f"{_REPO}/actions/workflows/{{file}}/dispatches", self._dispatch, methods=["POST"]),
                Route(f"{_REPO}/actions/runs/{{number:int}}", self._run),
                Route(f"{_REPO}/actions/runs/{{number:int}}/jobs", self._jobs),
                *self.git.routes(_REPO),
            ]
        )

    def token(self, login: str = ACTIONS, *, may_write: bool = True) -> str:
        token = f"ghs_{secrets.token_hex(18)}"
        self._accounts[token] = Account(login=login, may_write=may_write)
        return token

    def environment(self, token: str, *, run_id: int = 1) -> dict[str, str]:
        """What a step of watch.yml finds."""
        return {
            "GITHUB_ACTIONS": "true",
            "GITHUB_API_URL": self.url,
            "GITHUB_SERVER_URL": "https://github.com",
            "GITHUB_REPOSITORY": REPOSITORY,
            "GITHUB_REF": "refs/heads/main",
            "GITHUB_RUN_ID": str(run_id),
            "GITHUB_RUN_ATTEMPT": "1",
            "GITHUB_WORKFLOW_REF": f"{REPOSITORY}/.github/workflows/watch.yml@refs/heads/main",
            "GITHUB_TOKEN": token,
        }

    # -- what people and other runs do

    def open_issue(
        self, author: str, title: str, body: str, labels: Sequence[str] = ("awq-bot",), *, is_pull: bool = False
    ) -> Issue:
        issue = Issue(
            number=next(self._numbers), author=author, title=title, body=body, labels=[*labels], is_pull=is_pull
        )
        self.issues[issue.number] = issue
        return issue

    def add_comment(self, issue: int, author: str, body: str) -> Comment:
        comment = Comment(number=next(self._numbers), issue=issue, author=author, body=body)
        self.comments[comment.number] = comment
        return comment

    def add_run(self, number: int, *jobs: Job, **fields: Any) -> Run:
        self.runs[number] = Run(number=number, jobs=[*jobs], **fields)
        return self.runs[number]

    def troubles(self) -> list[Issue]:
        """All issues but the dashboard, which every plan writes."""
        return [issue for issue in self.issues.values() if "awq-bot: dashboard" not in issue.labels]

    def open_troubles(self) -> list[Issue]:
        return [issue for issue in self.troubles() if issue.state == "open"]

    def comments_on(self, issue: int) -> list[str]:
        return [comment.body for comment in self.comments.values() if comment.issue == issue]

    def fail(self, path: str = "", *, times: int | None = None, **fields: Any) -> None:
        """The next requests whose path matches are answered with `status`, `headers`, `body` instead."""
        self.faults.add(Fault(path=path, times=times, **fields))

    # -- running

    def __enter__(self) -> Self:
        self.url = self._stack.enter_context(served(self))
        return self

    def __exit__(self, *ended: object) -> None:
        self._stack.close()

    def account(self, request: Request) -> Account | None:
        word, _, token = request.headers.get("authorization", "").partition(" ")
        return self._accounts.get(token) if word.lower() in ("bearer", "token") else None

    # -- who

    def _login(self, request: Request) -> str:
        account = self.account(request)
        assert account is not None
        return account.login

    async def _graphql(self, request: Request) -> Response:
        account = self.account(request)
        assert account is not None
        query = (await request.json())["query"]
        if re.sub(r"\s+", "", query) != "query{viewer{login}}":
            return JSONResponse({"errors": [{"message": "not served here"}]})
        return JSONResponse({"data": {"viewer": {"login": account.login}}})

    async def _user(self, request: Request) -> Response:
        """As GitHub answers the token of a job."""
        return refusal(403, "Resource not accessible by integration")

    # -- issues

    async def _issues(self, request: Request) -> Response:
        asked = request.query_params
        labels = {label for label in asked.get("labels", "").split(",") if label}
        state = asked.get("state", "open")
        found = [
            issue
            for issue in self.issues.values()
            if state in (issue.state, "all") and labels <= set(issue.labels)
        ]
        found.sort(key=lambda issue: issue.number, reverse=asked.get("direction", "desc") == "desc")
        return self._page(request, [self._issue_json(issue) for issue in found])

    async def _create_issue(self, request: Request) -> Response:
        sent, account = await request.json(), self.account(request)
        assert account is not None
        if len(sent["title"]) > 256 or len(sent.get("body", "")) > 65536:
            return refusal(422, "Validation Failed")
        issue = self.open_issue(account.login, sent["title"], sent.get("body", ""), sent.get("labels", []))
        return JSONResponse(self._issue_json(issue), status_code=201)

    async def _issue(self, request: Request) -> Response:
        issue = self.issues.get(request.path_params["number"])
        if issue is None:
            return refusal(404, "Not Found")
        if request.method == "PATCH":
            sent = await request.json()
            issue.title = sent.get("title", issue.title)
            issue.body = sent.get("body", issue.body)
            issue.state = sent.get("state", issue.state)
            issue.labels = sent.get("labels", issue.labels)
        return JSONResponse(self._issue_json(issue))

    async def _comments(self, request: Request) -> Response:
        number, account = request.path_params["number"], self.account(request)
        assert account is not None
        if number not in self.issues and number not in self.git.pulls:
            return refusal(404, "Not Found")
        if request.method == "POST":
            comment = self.add_comment(number, account.login, (await request.json())["body"])
            return JSONResponse(self._comment_json(comment), status_code=201)
        found = [comment for comment in self.comments.values() if comment.issue == number]
        return self._page(request, [self._comment_json(comment) for comment in found])

    async def _edit_comment(self, request: Request) -> Response:
        comment = self.comments[request.path_params["number"]]
        comment.body = (await request.json())["body"]
        return JSONResponse(self._comment_json(comment))

    def _issue_json(self, issue: Issue) -> dict[str, Any]:
        url = f"{self.url}{_REPO}/issues/{issue.number}"
        pull = {"pull_request": {"url": f"{self.url}{_REPO}/pulls/{issue.number}"}} if issue.is_pull else {}
        return pull | {
            "id": issue.number,
            "number": issue.number,
            "url": url,
            "comments_url": f"{url}/comments",
            "title": issue.title,
            "body": issue.body,
            "state": issue.state,
            "user": Account(login=issue.author).user,
            "labels": [{"name": label} for label in issue.labels],
        }

    def _comment_json(self, comment: Comment) -> dict[str, Any]:
        url = f"{self.url}{_REPO}/issues/comments/{comment.number}"
        author = Account(login=comment.author).user
        return {"id": comment.number, "url": url, "body": comment.body, "user": author}

    # -- runs

    async def _runs(self, request: Request) -> Response:
        wanted = request.query_params.get("status")
        runs = [run for run in self.runs.values() if run.workflow == request.path_params["file"]]
        runs = [run for run in runs if wanted in (None, run.status)]
        runs.sort(key=lambda run: run.created_at, reverse=True)
        return self._page(request, [self._run_json(run) for run in runs], key="workflow_runs")

    async def _workflow(self, request: Request) -> Response:
        file = request.path_params["file"]
        url = f"{self.url}{_REPO}/actions/workflows/{file}"
        return JSONResponse({"id": 1, "url": url, "state": self.states.get(file, "active")})

    async def _enable(self, request: Request) -> Response:
        self.enabled.append(request.path_params["file"])
        self.states.pop(request.path_params["file"], None)
        return Response(status_code=204)

    async def _dispatch(self, request: Request) -> Response:
        self.dispatched.append((request.path_params["file"], (await request.json())["ref"]))
        return Response(status_code=204)

    async def _run(self, request: Request) -> Response:
        run = self.runs.get(request.path_params["number"])
        return JSONResponse(self._run_json(run)) if run is not None else refusal(404, "Not Found")

    async def _jobs(self, request: Request) -> Response:
        run = self.runs.get(request.path_params["number"])
        if run is None:
            return refusal(404, "Not Found")
        return self._page(request, [_job_json(run, job) for job in run.jobs], key="jobs")

    def _run_json(self, run: Run) -> dict[str, Any]:
        url = f"{self.url}{_REPO}/actions/runs/{run.number}"
        return {
            "id": run.number,
            "url": url,
            "jobs_url": f"{url}/jobs",
            "status": run.status,
            "created_at": _time(run.created_at),
        }

    # -- pages

    def _page(self, request: Request, items: list[dict[str, Any]], *, key: str = "") -> Response:
        asked = request.query_params
        size = min(int(asked.get("per_page", 30)), 100)
        page = int(asked.get("page", 1))
        headers = {}
        if page * size < len(items):
            following = dict(asked) | {"page": str(page + 1)}
            headers["Link"] = f'<{self.url}{request.url.path}?{urlencode(following)}>; rel="next"'
        shown = items[(page - 1) * size : page * size]
        content = {"total_count": len(items), key: shown} if key else shown
        return JSONResponse(content, headers=headers)

    # -- in front of every route: the log, failures on request, and who may do what

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        account = self.account(request)

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                login = account.login if account is not None else ""
                self.requests.append(Asked(request.method, request.url.path, login, message["status"]))
            await send(message)

        await (self._refused(request, account) or self._app)(scope, receive, sending)

    def _refused(self, request: Request, account: Account | None) -> Response | None:
        fault = self.faults.take(request.method, request.url.path)
        if fault is not None and fault.status is not None:
            return refusal(fault.status, fault.body or "Server Error", dict(fault.headers))
        if not request.url.path.startswith(("/repos/", "/graphql", "/user")):
            return None
        if account is None:
            return refusal(401, "Bad credentials")
        if not account.may_write and request.method != "GET" and request.url.path != "/graphql":
            return refusal(403, "Resource not accessible by integration")
        return None


def refusal(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"message": message}, status_code=status, headers=headers)


def _job_json(run: Run, job: Job) -> dict[str, Any]:
    return {
        "id": abs(hash((run.number, job.name))) % 10**9,
        "run_id": run.number,
        "name": job.name,
        "status": job.status,
        "conclusion": job.conclusion if job.status == "completed" else None,
        "created_at": _time(job.created_at or run.created_at),
        "started_at": _time(job.started_at or job.created_at or run.created_at),
        "completed_at": _time(job.completed_at) if job.completed_at else None,
        "runner_name": job.runner,
        "html_url": f"https://github.com/{REPOSITORY}/actions/runs/{run.number}/job/1",
    }


def _time(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
