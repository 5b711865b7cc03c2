"""Requests to a Hub and transfers: credentials, what is retried, and the error when it keeps failing."""

from __future__ import annotations

import errno
import logging
import re
import time
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import httpx2
import pytest
import stamina
from huggingface_hub import HfApi, constants, file_download
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import close_session, get_session

from bot.errors import BotError, EnvironmentProblem, PublishError
from bot.hub import client, is_loopback, session
from bot.hub.environment import DEFAULT_ENDPOINT
from bot.hub.fetch import files_at
from bot.hub.pull import pull_source
from bot.hub.session import ATTEMPTS, Hub, HubFailsError, call
from bot.localhub import Fault, LocalHub
from bot.records import no_progress
from tests.support.release import Release
from tests.support.repos import SOURCE, as_bot, release_job, requests, source_files


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_ENDPOINT": "", "HF_TOKEN": " "}, Hub(DEFAULT_ENDPOINT, None, None)),
        ({"HF_ENDPOINT": "https://a.example/ ", "HF_TOKEN": "hf_r\n"}, Hub("https://a.example", "hf_r", "hf_r")),
        ({"HF_TOKEN": "hf_r", "HF_WRITE_TOKEN": "hf_w"}, Hub(DEFAULT_ENDPOINT, "hf_r", "hf_w")),
    ],
)
def test_endpoint_and_tokens_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Hub
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Hub.from_environment() == expected
    assert "hf_" not in repr(Hub.from_environment())


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://huggingface.co", "http://", "http://[::1"])
def test_endpoint_that_is_not_a_url_is_named(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(EnvironmentProblem, match="HF_ENDPOINT") as caught:
        Hub.from_environment()
    assert DEFAULT_ENDPOINT in caught.value.hint


def test_token_with_stray_characters_is_refused_and_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_WRITE_TOKEN", "hf_secret\u200b")
    with pytest.raises(EnvironmentProblem) as caught:
        Hub.from_environment()
    assert "HF_WRITE_TOKEN" in caught.value.message
    assert "secret" not in caught.value.message + caught.value.hint


def test_token_stored_on_this_machine_is_not_used(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token("bot"))
    hub.seed("lab/Tiny", {"a": "1"})
    Hub(hub.endpoint).reader.model_info("lab/Tiny")
    assert [record.authenticated for record in hub.requests] == [False]


@pytest.mark.parametrize("fault", [Fault(path="whoami", status=503), Fault(path="whoami", lose_answer=True)])
def test_busy_hub_and_a_lost_answer_are_retried(hub: LocalHub, fault: Fault) -> None:
    hub.faults.add(fault)
    assert call(as_bot(hub).writer.whoami)["name"] == "bot"
    assert len(hub.requests) == 2


def test_each_retry_is_logged_with_its_cause_and_the_wait(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    log = BufferingHandler(100)
    monkeypatch.setattr(logging.getLogger("awq_bot"), "handlers", [log])
    hub.faults.add(Fault(path="whoami", status=503))
    call(as_bot(hub).writer.whoami)
    line = log.buffer.pop().getMessage()
    assert re.fullmatch(r"GET /api/whoami-v2 was answered with 503; retry 1 of 5 in \d\.\d s", line), line
    with stamina.set_testing(True, attempts=2), pytest.raises(EnvironmentProblem) as caught:
        call(Hub("http://127.0.0.1:9", "hf_secret").reader.whoami)
    refused = "the Hub at http://127.0.0.1:9 refuses the connection"
    assert [item.getMessage() for item in log.buffer] == [f"{refused}; retry 1 of 5 in 0.0 s"]
    assert (caught.value.message, caught.value.exit_code) == (refused, 8)
    assert caught.value.hint == "Is `awq-bot hub` running? Otherwise check HF_ENDPOINT."


def test_silent_hub_times_out(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "SILENCE_S", 0.2)
    hub.faults.add(Fault(delay_s=1.5, times=None))
    reader = as_bot(hub).reader
    # The first uses the client's default, the second asks for no limit.
    timed_out = pytest.raises(EnvironmentProblem, match=r"cannot be reached: .*timed out")
    for request in (reader.whoami, lambda: reader.model_info("lab/Tiny")):
        with stamina.set_testing(True, attempts=2), timed_out:
            call(request)


def test_commits_may_take_longer(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, release: Release) -> None:
    monkeypatch.setattr(client, "SILENCE_S", 0.5)
    hub.faults.add(Fault(path="/commit/", delay_s=1.5))
    assert release.publish().new
    assert len(requests(hub, "POST", "/commit/")) == 1


@pytest.mark.parametrize(
    ("status", "headers"), [(429, {"RateLimit": '"api";r=0;t=1'}), (503, {"Retry-After": "2"})]
)
def test_the_hub_says_how_long_to_wait(hub: LocalHub, status: int, headers: dict[str, str]) -> None:
    hub.faults.add(Fault(path="whoami", status=status, headers=headers))
    started = time.monotonic()
    assert call(as_bot(hub).writer.whoami)["name"] == "bot"
    assert 2 <= time.monotonic() - started < 5


@pytest.mark.parametrize("retry_after", ["0", "-5", "soon", "nan"])
def test_invalid_retry_after_is_ignored(hub: LocalHub, retry_after: str) -> None:
    hub.faults.add(Fault(path="whoami", status=429, headers={"Retry-After": retry_after}))
    with stamina.set_testing(True, attempts=2):
        assert call(as_bot(hub).writer.whoami)["name"] == "bot"


@pytest.mark.parametrize(("status", "words"), [(503, "answers 503"), (429, "limits our requests")])
def test_hub_that_keeps_failing_is_an_environment_problem(hub: LocalHub, status: int, words: str) -> None:
    hub.faults.add(Fault(path="whoami", status=status, body="not now", times=None))
    with stamina.set_testing(True, attempts=3), pytest.raises(EnvironmentProblem, match=words) as caught:
        call(as_bot(hub).writer.whoami)
    assert caught.value.exit_code == 8
    assert "again" in caught.value.hint
    assert caught.value.message.endswith(", after 3 tries")
    assert isinstance(caught.value, HubFailsError) == (status == 503)
    assert len(hub.requests) == 3


@pytest.mark.parametrize(
    "fault",
    [Fault(path="/tree/", status=503, times=None), Fault(path="/tree/", lose_answer=True, times=None)],
    ids=["busy", "lost"],
)
def test_one_request_has_one_budget_of_retries(hub: LocalHub, fault: Fault) -> None:
    """huggingface_hub would list files six times for each of our tries, and wait 23 seconds in between."""
    hub.seed("lab/Tiny", {"a": "1"})
    hub.faults.add(fault)
    hub.clear_requests()
    with stamina.set_testing(True, attempts=2), pytest.raises(EnvironmentProblem):
        files_at(as_bot(hub).reader, "lab/Tiny")
    assert len(requests(hub, "GET", "/tree/")) == 2


def test_the_retries_of_one_request_wait_for_half_a_minute() -> None:
    waits = [session._FIRST_WAIT_S * session._WAIT_GROWS**number for number in range(ATTEMPTS - 1)]
    assert 30 < sum(waits) < 40


def test_a_hub_that_is_down_is_asked_once_for_each_further_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_DOWN_S", 0.0)
    rounds: list[str] = []

    def ask(name: str, answers: bool = False) -> None:
        rounds.append(name)
        if not answers:
            raise httpx2.ConnectError("refused")

    def fails(name: str) -> None:
        with stamina.set_testing(True, attempts=3), pytest.raises(EnvironmentProblem, match="refuses the conn"):
            call(lambda: ask(name))

    fails("first")
    fails("second")
    call(lambda: ask("answered", answers=True))
    fails("third")
    assert rounds == ["first", "first", "second", "answered", "third", "third"]


def test_client_that_another_thread_closed_is_replaced(hub: LocalHub) -> None:
    clients = []

    def ask() -> int:
        clients.append(get_session())
        if len(clients) == 1:
            close_session()  # as huggingface_hub does in the thread that could not connect
        return clients[-1].get(f"{hub.endpoint}/api/models").status_code

    assert call(ask) == 200
    assert len(clients) == 2


def test_offline_mode_is_named(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentProblem, match="HF_HUB_OFFLINE"):
        call(as_bot(hub).reader.whoami)


@pytest.mark.parametrize("message", ["Invalid credentials in Authorization header", 'Token "ci" is expired'])
def test_refused_token_is_named(hub: LocalHub, api: HfApi, message: str) -> None:
    hub.faults.add(Fault(path="/api/models/", status=401, headers={"X-Error-Message": message}))
    with pytest.raises(EnvironmentProblem, match="refuses the token") as caught:
        call(lambda: api.model_info("lab/Tiny"))
    assert "HF_WRITE_TOKEN" in caught.value.hint


def test_private_repo_without_a_token_is_missing(hub: LocalHub, anonymous: HfApi) -> None:
    hub.seed("lab/Secret", {"a": "1"}, private=True)
    with pytest.raises(RepositoryNotFoundError):
        call(lambda: anonymous.model_info("lab/Secret"))


def test_tokens_are_in_no_message_and_no_log(hub: LocalHub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = as_bot(hub)
    hub.faults.add(Fault(path="whoami", status=503))
    call(client.writer.whoami)
    hub.revoke_token(hub.token("bot"))
    with pytest.raises(EnvironmentProblem) as caught:
        call(client.writer.whoami)
    said = f"{caught.value!r} {caught.value.hint} {caplog.text}"
    assert len(caplog.records) > 0
    assert str(client.write_token) not in said


def test_only_addresses_of_this_machine_are_loopback() -> None:
    assert all(map(is_loopback, ("http://127.0.0.1:8765", "http://[::1]:8765", "http://localhost")))
    assert not any(map(is_loopback, ("https://huggingface.co", "https://127.0.0.1.example.com", "")))


# --- transfers: huggingface_hub and hf_xet raise errors of many kinds, awq-bot raises its own ---------------

# As hf_xet 1.8 words them; the local Hub does not speak its protocol.
WORDS = [
    RuntimeError("Task error: Download task failed\nat line 7"),
    ConnectionError("error sending request for url"),
    TimeoutError("operation timed out"),
    PermissionError("token refresh failed"),
]
FULL = "Task error: I/O error: No space left on device (os error 28)"


def failing(monkeypatch: pytest.MonkeyPatch, module: str, name: str, errors: list[Exception]) -> None:
    """Each call runs into the next error, and goes on as it should when there are none left."""
    real = getattr(__import__(module, fromlist=[name]), name)

    def transfer(*args: Any, **kwargs: Any) -> object:
        if errors:
            raise errors.pop(0)
        return real(*args, **kwargs)

    monkeypatch.setattr(f"{module}.{name}", transfer)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [(503, HubFailsError, "answers 503"), (403, PublishError, r"not permitted to upload assets/error\.png \(403")],
)
def test_refused_blob_is_an_error_with_a_hint(
    hub: LocalHub, release: Release, status: int, kind: type[BotError], words: str
) -> None:
    hub.faults.add(Fault(path="/uploads/", method="PUT", status=status, times=None))
    with stamina.set_testing(True, attempts=2):
        assert release.fails(words, kind).exit_code == (8 if status == 503 else 7)
    assert len(requests(hub, "PUT", "/uploads/")) == (2 if status == 503 else 1)
    assert release.private


@pytest.mark.parametrize("error", WORDS, ids=lambda error: type(error).__name__)
def test_upload_error_that_is_text_only_is_retried(
    release: Release, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, "huggingface_hub._commit_api", "_upload_lfs_files", [error])
    with stamina.set_testing(True, attempts=2):
        assert release.publish().new


def test_full_disk_while_sending_is_named(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """hf_xet writes notes about what it sends."""
    failing(monkeypatch, "huggingface_hub._commit_api", "_upload_lfs_files", [RuntimeError(FULL)])
    assert "disk" in release.fails("No space left on device", EnvironmentProblem).hint


def pull(hub: LocalHub, folder: Path) -> Path:
    hub.seed(SOURCE, source_files())
    pull_source(as_bot(hub), release_job(hub), folder, no_progress)
    return folder / "model.safetensors"


@pytest.mark.parametrize("error", WORDS, ids=lambda error: type(error).__name__)
def test_download_error_that_is_text_only_is_retried(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    failing(monkeypatch, file_download.__name__, "http_get", [error])
    with stamina.set_testing(True, attempts=2):
        assert pull(hub, tmp_path / "source").is_file()
    failing(monkeypatch, file_download.__name__, "http_get", [error] * 100)
    (tmp_path / "source" / "model.safetensors").unlink()
    with stamina.set_testing(True, attempts=2), pytest.raises(HubFailsError, match="transfer failed") as caught:
        pull(hub, tmp_path / "source")
    assert str(error).splitlines()[0] in caught.value.message


@pytest.mark.parametrize(
    ("name", "error"),
    [("http_get", RuntimeError(FULL)), ("_chmod_and_move", OSError(errno.ENOSPC, "No space left on device"))],
    ids=["hf_xet", "huggingface_hub"],
)
def test_full_disk_while_downloading_is_named(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    failing(monkeypatch, file_download.__name__, name, [error] * 9)
    with pytest.raises(EnvironmentProblem, match="cannot be written: No space left on device") as caught:
        pull(hub, tmp_path / "source")
    assert "--work" in caught.value.hint
