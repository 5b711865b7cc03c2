"""The git side of GitHub's API: refs, commits, trees, one file's content, and pull requests between branches."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

FORBIDDEN = "GitHub Actions is not permitted to create or approve pull requests."


@dataclass(slots=True, kw_only=True)
class Commit:
    sha: str
    files: dict[str, str]
    parents: tuple[str, ...] = ()
    message: str = ""


@dataclass(slots=True, kw_only=True)
class Pull:
    number: int
    author: str
    head: str
    base: str
    title: str
    body: str
    state: str = "open"


def blob_sha(content: str) -> str:
    """As `git hash-object` prints it."""
    data = content.encode()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(slots=True)
class GitRepository:
    """refs: branches without `refs/`. may_open_pulls: the setting of the repository for workflows."""

    url: Callable[[], str]
    login: Callable[[Request], str]
    numbers: Iterable[int]
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    pulls: dict[int, Pull] = field(default_factory=dict)
    may_open_pulls: bool = True
    _trees: dict[str, dict[str, str]] = field(default_factory=dict)
    _counter: itertools.count[int] = field(default_factory=itertools.count)

    # -- what people do, and what tests look at

    def push(self, branch: str, **files: str) -> Commit:
        """A commit on a branch; a path is written with `__` for its dot."""
        before = self.commits.get(self.refs.get(f"heads/{branch}", ""))
        changed = {path.replace("__", "."): content for path, content in files.items()}
        made = self._commit((before.files if before else {}) | changed, [before.sha] if before else [], "push")
        self.refs[f"heads/{branch}"] = made.sha
        return made

    def at(self, branch: str) -> Commit:
        return self.commits[self.refs[f"heads/{branch}"]]

    def open_pull(self, author: str, head: str, *, title: str, body: str, base: str = "main") -> Pull:
        number = next(iter(self.numbers))
        self.pulls[number] = Pull(number=number, author=author, head=head, base=base, title=title, body=body)
        return self.pulls[number]

    def merge(self, number: int) -> None:
        pull = self.pulls[number]
        self.push(pull.base, **{path.replace(".", "__"): text for path, text in self.at(pull.head).files.items()})
        pull.state = "closed"

    # -- routes

    def routes(self, prefix: str) -> list[Route]:
        return [
            Route(prefix, self._repository),
            Route(f"{prefix}/git/ref/{{ref:path}}", self._ref),
            Route(f"{prefix}/git/refs", self._create_ref, methods=["POST"]),
            Route(f"{prefix}/git/refs/{{ref:path}}", self._ref, methods=["GET", "PATCH", "DELETE"]),
            Route(f"{prefix}/git/commits", self._create_commit, methods=["POST"]),
            Route(f"{prefix}/git/commits/{{sha}}", self._get_commit),
            Route(f"{prefix}/git/trees", self._create_tree, methods=["POST"]),
            Route(f"{prefix}/contents/{{path:path}}", self._contents),
            Route(f"{prefix}/pulls", self._pulls, methods=["GET", "POST"]),
            Route(f"{prefix}/pulls/{{number:int}}", self._pull, methods=["GET", "PATCH"]),
        ]

    async def _repository(self, request: Request) -> Response:
        return JSONResponse({"id": 1, "url": self.url(), "default_branch": "main"})

    async def _ref(self, request: Request) -> Response:
        name = request.path_params["ref"]
        if name not in self.refs:
            return _refusal(404, "Not Found")
        if request.method == "DELETE":
            del self.refs[name]
            self._close_empty()
            return Response(status_code=204)
        if request.method == "PATCH":
            sent = await request.json()
            if not sent.get("force") and self.refs[name] not in self.commits[sent["sha"]].parents:
                return _refusal(422, "Update is not a fast forward")
            self.refs[name] = sent["sha"]
            self._close_empty()
        return JSONResponse(self._ref_json(name))

    async def _create_ref(self, request: Request) -> Response:
        sent = await request.json()
        name = sent["ref"].removeprefix("refs/")
        if name in self.refs or sent["sha"] not in self.commits:
            return _refusal(422, "Reference already exists")
        self.refs[name] = sent["sha"]
        return JSONResponse(self._ref_json(name), status_code=201)

    async def _get_commit(self, request: Request) -> Response:
        return JSONResponse(self._commit_json(self.commits[request.path_params["sha"]]))

    async def _create_tree(self, request: Request) -> Response:
        sent = await request.json()
        files = self._trees[sent["base_tree"]] | {item["path"]: item["content"] for item in sent["tree"]}
        sha = self._tree(files)
        return JSONResponse({"sha": sha, "url": f"{self.url()}/git/trees/{sha}", "tree": []}, status_code=201)

    async def _create_commit(self, request: Request) -> Response:
        sent = await request.json()
        made = self._commit(self._trees[sent["tree"]], sent["parents"], sent["message"])
        return JSONResponse(self._commit_json(made), status_code=201)

    async def _contents(self, request: Request) -> Response:
        path, ref = request.path_params["path"], request.query_params["ref"]
        content = self.commits[ref].files.get(path)
        if content is None:
            return _refusal(404, "Not Found")
        encoded = base64.b64encode(content.encode()).decode()
        found = {"type": "file", "path": path, "name": path, "sha": blob_sha(content), "size": len(content)}
        return JSONResponse(found | {"encoding": "base64", "content": encoded, "url": str(request.url)})

    async def _pulls(self, request: Request) -> Response:
        if request.method == "POST":
            return await self._create_pull(request)
        asked = request.query_params
        state, head = asked.get("state", "open"), asked.get("head", "").partition(":")[2]
        found = [pull for pull in self.pulls.values() if state in (pull.state, "all") and head in ("", pull.head)]
        found.sort(key=lambda pull: pull.number, reverse=True)
        return JSONResponse([self._pull_json(pull) for pull in found])

    async def _create_pull(self, request: Request) -> Response:
        sent = await request.json()
        if not self.may_open_pulls:
            return _refusal(403, FORBIDDEN)
        head, base = sent["head"], sent["base"]
        taken = any(pull.head == head and pull.state == "open" for pull in self.pulls.values())
        if taken or self.refs[f"heads/{head}"] == self.refs[f"heads/{base}"]:
            return _refusal(422, "Validation Failed")
        made = self.open_pull(self.login(request), head, title=sent["title"], body=sent["body"], base=base)
        return JSONResponse(self._pull_json(made), status_code=201)

    async def _pull(self, request: Request) -> Response:
        pull = self.pulls[request.path_params["number"]]
        if request.method == "PATCH":
            sent = await request.json()
            pull.title, pull.body = sent.get("title", pull.title), sent.get("body", pull.body)
            pull.state = sent.get("state", pull.state)
        return JSONResponse(self._pull_json(pull))

    # -- git

    def _close_empty(self) -> None:
        """GitHub closes a pull request whose branch is deleted, or has no commit that its base has not."""
        for pull in self.pulls.values():
            if self.refs.get(f"heads/{pull.head}") in (None, self.refs[f"heads/{pull.base}"]):
                pull.state = "closed"

    def _tree(self, files: dict[str, str]) -> str:
        sha = hashlib.sha1(json.dumps(files, sort_keys=True).encode()).hexdigest()
        self._trees[sha] = files
        return sha

    def _commit(self, files: dict[str, str], parents: Iterable[str], message: str) -> Commit:
        sha = hashlib.sha1(f"{next(self._counter)}".encode()).hexdigest()
        self.commits[sha] = Commit(sha=sha, files=files, parents=tuple(parents), message=message)
        self._tree(files)
        return self.commits[sha]

    def _ref_json(self, name: str) -> dict[str, Any]:
        sha = self.refs[name]
        target = {"sha": sha, "type": "commit", "url": f"{self.url()}/git/commits/{sha}"}
        return {"ref": f"refs/{name}", "url": f"{self.url()}/git/refs/{name}", "object": target}

    def _commit_json(self, commit: Commit) -> dict[str, Any]:
        tree = self._tree(commit.files)
        return {
            "sha": commit.sha,
            "url": f"{self.url()}/git/commits/{commit.sha}",
            "message": commit.message,
            "tree": {"sha": tree, "url": f"{self.url()}/git/trees/{tree}"},
            "parents": [{"sha": sha, "url": f"{self.url()}/git/commits/{sha}"} for sha in commit.parents],
        }

    def _pull_json(self, pull: Pull) -> dict[str, Any]:
        return {
            "id": pull.number,
            "number": pull.number,
            "url": f"{self.url()}/pulls/{pull.number}",
            "issue_url": f"{self.url()}/issues/{pull.number}",
            "title": pull.title,
            "body": pull.body,
            "state": pull.state,
            "user": {"login": pull.author, "id": 1, "type": "User"},
            "head": {"ref": pull.head},
            "base": {"ref": pull.base},
        }


def _refusal(status: int, message: str) -> Response:
    return JSONResponse({"message": message}, status_code=status)
