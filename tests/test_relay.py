"""templates/relay: which events start the watch, how often, and what happens to all others."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import pytest

from tests.support.github_api.server import REPOSITORY, GitHubApi
from tests.support.github_api.serving import served

APP = Path(__file__).parents[1] / "templates" / "relay" / "app.py"
SECRET = "a secret of the webhook"
# As https://huggingface.co/docs/hub/webhooks has it, shortened.
EVENT: dict[str, Any] = {
    "event": {"action": "update", "scope": "repo.content"},
    "repo": {"type": "model", "name": "lab/Tiny", "id": "6366c000a2abcdf2fd69a080", "private": False},
    "updatedRefs": [{"ref": "refs/heads/main", "oldSha": "a" * 40, "newSha": "b" * 40}],
    "webhook": {"id": "6390e855e30d9209411de93b", "version": 3},
}


@pytest.fixture(scope="module")
def relay() -> ModuleType:
    spec = importlib.util.spec_from_file_location("relay_app", APP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["relay_app"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def api() -> Iterator[GitHubApi]:
    with GitHubApi() as made:
        yield made


Send = Callable[..., httpx2.Response]


@pytest.fixture
def send(relay: ModuleType, api: GitHubApi, monkeypatch: pytest.MonkeyPatch) -> Iterator[Send]:
    monkeypatch.setattr(relay, "PAUSE_S", 2.0)
    settings = relay.Settings(secret=SECRET, token=api.token(), repository=REPOSITORY, api_url=api.url)
    with served(relay.make_app(settings)) as url:

        def post(content: Any = EVENT, *, secret: str = SECRET) -> httpx2.Response:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            return httpx2.post(url, content=body, headers=[(b"X-Webhook-Secret", secret.encode("latin-1"))])

        assert httpx2.get(url).text == "ready for the Hub's webhooks"
        yield post


def dispatched(api: GitHubApi, count: int) -> list[tuple[str, str]]:
    """When there are as many, or after the longest pause."""
    ends = time.monotonic() + 10
    while len(api.dispatched) < count and time.monotonic() < ends:
        time.sleep(0.01)
    return api.dispatched


def test_an_event_starts_the_watch(send: Send, api: GitHubApi) -> None:
    assert send().status_code == 202
    assert dispatched(api, 1) == [("watch.yml", "main")]


def test_several_events_are_one_more_run(
    relay: ModuleType, api: GitHubApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "PAUSE_S", 2.0)
    settings = relay.Settings(secret=SECRET, token=api.token(), repository=REPOSITORY, api_url=api.url)

    async def events() -> None:
        starter = relay.Starter(settings)
        for wanted in (1, 2):
            for _ in range(9):
                starter.wake()
            while len(api.dispatched) < wanted:
                await asyncio.sleep(0.01)
        await asyncio.sleep(3.0)

    asyncio.run(events())
    assert api.dispatched == [("watch.yml", "main")] * 2


@pytest.mark.parametrize("secret", ["", "wrong", f"{SECRET}x", "\xe9"])
def test_an_event_without_the_secret_is_refused(send: Send, api: GitHubApi, secret: str) -> None:
    assert send(secret=secret).status_code == 403
    assert not dispatched_soon(api)


def dispatched_soon(api: GitHubApi) -> list[tuple[str, str]]:
    time.sleep(0.2)
    return api.dispatched


@pytest.mark.parametrize(
    "event",
    [
        EVENT | {"repo": EVENT["repo"] | {"type": "dataset"}},
        EVENT | {"event": {"action": "create", "scope": "discussion"}},
        EVENT | {"event": {"action": "delete", "scope": "repo"}},
        EVENT | {"updatedRefs": [{"ref": "refs/pr/1"}]},
        EVENT | {"updatedRefs": []},
        EVENT | {"event": "update"},
        EVENT | {"event": {"action": [], "scope": {}}},
        EVENT | {"repo": None},
        {},
        [],
        7,
    ],
)
def test_other_events_are_ignored(send: Send, api: GitHubApi, event: Any) -> None:
    answer = send(event)
    assert (answer.status_code, answer.text) == (200, "nothing to do for this event")
    assert not dispatched_soon(api)


@pytest.mark.parametrize(
    "event",
    [
        {"event": {"action": "create", "scope": "repo"}, "repo": {"type": "model"}},
        {"event": {"action": "move", "scope": "repo"}, "repo": {"type": "model"}},
        {"event": {"action": "update", "scope": "repo.config"}, "repo": {"type": "model"}},
    ],
)
def test_new_renamed_and_opened_repos_are_news(relay: ModuleType, event: Any) -> None:
    assert relay.wakes(event)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'"' + b"x" * (1 << 20) + b'"'])
def test_what_is_no_event_is_refused(send: Send, api: GitHubApi, content: bytes) -> None:
    assert send(content).status_code == 400
    assert not dispatched_soon(api)


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_refusal_of_github_is_logged_and_the_next_event_tries_again(
    send: Send, api: GitHubApi, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    api.fail("/dispatches$", times=1, status=status)
    with caplog.at_level(logging.INFO, "relay"):
        send()
        while f"GitHub answered {status}" not in caplog.text:
            time.sleep(0.01)
        send()
        assert len(dispatched(api, 1)) == 1
    assert f"GitHub answered {status}" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"WEBHOOK_SECRET": "short"}, "WEBHOOK_SECRET: "),
        ({"GITHUB_TOKEN": ""}, "GITHUB_TOKEN: "),
        ({"GITHUB_REPOSITORY": "nothing"}, "GITHUB_REPOSITORY: "),
    ],
)
def test_a_missing_setting_is_named_and_no_value_is_shown(changed: dict[str, str], said: str) -> None:
    given = {"WEBHOOK_SECRET": SECRET, "GITHUB_TOKEN": "ghp_token", "GITHUB_REPOSITORY": REPOSITORY} | changed
    ended = subprocess.run(
        [sys.executable, APP], env=given, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(said)
    assert SECRET not in ended.stderr
