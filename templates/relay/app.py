"""A relay: the Hub's webhooks start the watch of an awq-bot repository at once, instead of at its next hour.

An event only wakes the watch, which asks the Hub itself what is new. Nothing of the event is passed on.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

MOST_BYTES = 1 << 20  # of an event
PAUSE_S = 60.0  # between two runs: a release is several commits, each with its event
TIMEOUT_S = 20.0
MAIN = "refs/heads/main"

log = logging.getLogger("relay")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """secret: the webhook's, as set on the Hub. token: of GitHub, with `actions: write` for this repository."""

    secret: str
    token: str
    repository: str
    workflow: str = "watch.yml"
    branch: str = "main"
    api_url: str = "https://api.github.com"


def read_settings(variables: Mapping[str, str]) -> Settings:
    """Raises ValueError, which names the variable and not its value."""
    secret, token, repository = (
        variables.get(name, "").strip() for name in ("WEBHOOK_SECRET", "GITHUB_TOKEN", "GITHUB_REPOSITORY")
    )
    if len(secret) < 16:
        raise ValueError("WEBHOOK_SECRET: set the secret of the webhook, of at least 16 characters")
    if not token:
        raise ValueError(
            "GITHUB_TOKEN: set a fine-grained token with `Actions: read and write` for the repository"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII):
        raise ValueError("GITHUB_REPOSITORY: set the repository whose watch is started, as OWNER/NAME")
    optional = {
        field: value
        for field, name in (("workflow", "WORKFLOW"), ("branch", "BRANCH"), ("api_url", "GITHUB_API_URL"))
        if (value := variables.get(name, "").strip().rstrip("/"))
    }
    return Settings(secret=secret, token=token, repository=repository, **optional)


def wakes(event: Any) -> bool:
    """Whether an event may be news for the watch: a model repo that is new, renamed, opened, or has a new main.

    https://huggingface.co/docs/hub/webhooks
    """
    if not isinstance(event, dict):
        return False
    what, repo, refs = event.get("event"), event.get("repo"), event.get("updatedRefs")
    if not isinstance(what, dict) or not isinstance(repo, dict) or repo.get("type") != "model":
        return False
    scope = what.get("scope")
    if not isinstance(scope, str) or scope.partition(".")[0] != "repo" or what.get("action") == "delete":
        return False
    if not isinstance(refs, list):
        return True
    return any(isinstance(ref, dict) and ref.get("ref") == MAIN for ref in refs)


class Starter:
    """Starts the workflow, at most once in PAUSE_S; events in between are one more run at its end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._next = 0.0
        self._waiting: asyncio.Task[None] | None = None

    def wake(self) -> None:
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._start())

    async def _start(self) -> None:
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(max(0.0, self._next - clock()))
        self._next = clock() + PAUSE_S
        self._waiting = None  # an event from here on is news that this run may not see
        await self._dispatch()

    async def _dispatch(self) -> None:
        """https://docs.github.com/en/rest/actions/workflows#create-a-workflow-dispatch-event"""
        asked = self._settings
        url = f"{asked.api_url}/repos/{asked.repository}/actions/workflows/{asked.workflow}/dispatches"
        headers = {"Authorization": f"Bearer {asked.token}", "Accept": "application/vnd.github+json"}
        try:
            async with httpx2.AsyncClient(timeout=TIMEOUT_S) as client:
                answer = await client.post(url, headers=headers, json={"ref": asked.branch})
        except httpx2.HTTPError as error:
            log.warning("GitHub did not answer (%s): the next scheduled run sees it", type(error).__name__)
            return
        if answer.is_success:
            log.info("%s is started", asked.workflow)
        else:
            log.warning("GitHub answered %d: check GITHUB_TOKEN and GITHUB_REPOSITORY", answer.status_code)


def make_app(settings: Settings) -> Starlette:
    starter = Starter(settings)

    async def receive(request: Request) -> PlainTextResponse:
        given = request.headers.get("x-webhook-secret", "")
        if not hmac.compare_digest(given.encode(), settings.secret.encode()):
            return PlainTextResponse("the secret is not that of the webhook", status_code=403)
        event = await _read(request)
        if event is None:
            return PlainTextResponse("no JSON of at most 1 MB", status_code=400)
        if not wakes(event):
            return PlainTextResponse("nothing to do for this event")
        starter.wake()
        return PlainTextResponse("the watch is started", status_code=202)

    async def ready(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ready for the Hub's webhooks")

    return Starlette(routes=[Route("/", ready), Route("/", receive, methods=["POST"])])


async def _read(request: Request) -> Any:
    """The event, or None."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MOST_BYTES:
            return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    try:
        settings = read_settings(os.environ)
    except ValueError as error:
        sys.exit(str(error))
    # In a container, whose host decides which of its ports others reach.
    uvicorn.run(make_app(settings), host="0.0.0.0", port=int(os.environ.get("PORT", "7860")))  # noqa: S104


if __name__ == "__main__":
    main()
