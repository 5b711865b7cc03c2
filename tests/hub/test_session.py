"""Requests to a Hub: credentials, what is retried, and the error when it keeps failing."""

from __future__ import annotations

import logging
import re
import socket
import time
from logging.handlers import BufferingHandler

import httpx2
import pytest
import stamina
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import close_session, get_session

from bot.errors import EnvironmentProblem
from bot.hub import is_loopback, session
from bot.hub.session import DEFAULT_ENDPOINT, Hub, HubFailsError, call
from bot.localhub import Fault, LocalHub
from tests.support.release import Release
from tests.support.repos import as_bot, requests


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_ENDPOINT": "", "HF_TOKEN": " "}, Hub(DEFAULT_ENDPOINT, None, None)),
        (
            {"HF_ENDPOINT": "https://hub.example.com/ ", "HF_TOKEN": "hf_r\n"},
            Hub("https://hub.example.com", "hf_r", "hf_r"),
        ),
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
    with stamina.set_testing(True, attempts=2), pytest.raises(EnvironmentProblem):
        call(Hub("http://127.0.0.1:9", "hf_secret").reader.whoami)
    line = log.buffer.pop().getMessage()
    assert re.fullmatch(
        r"the Hub at http://127\.0\.0\.1:9 refuses the connection; retry 1 of 5 in 0\.0 s", line
    ), line
    assert log.buffer == []


def test_silent_hub_times_out(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SILENCE_S", 0.2)
    hub.faults.add(Fault(delay_s=1.5, times=None))
    reader = as_bot(hub).reader
    # The first uses the client's default, the second asks for no limit.
    for request in (reader.whoami, lambda: reader.model_info("lab/Tiny")):
        with (
            stamina.set_testing(True, attempts=2),
            pytest.raises(EnvironmentProblem, match=r"cannot be reached: .*timed out"),
        ):
            call(request)


def test_commits_may_take_longer(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, release: Release) -> None:
    monkeypatch.setattr(session, "SILENCE_S", 0.5)
    hub.faults.add(Fault(path="/commit/", delay_s=1.5))
    assert release.publish().new
    assert len(requests(hub, "POST", "/commit/")) == 1


def test_rate_limit_is_waited_for_as_the_hub_says(hub: LocalHub) -> None:
    hub.faults.add(Fault(path="whoami", status=429, headers={"RateLimit": '"api";r=0;t=1'}))
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
    assert isinstance(caught.value, HubFailsError) == (status == 503)
    assert len(hub.requests) == 3


def test_refused_connection_names_the_endpoint_and_what_to_check() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    nowhere = Hub(f"http://127.0.0.1:{port}", "hf_secret", "hf_secret")
    with stamina.set_testing(True, attempts=2), pytest.raises(EnvironmentProblem) as caught:
        call(nowhere.reader.whoami)
    assert caught.value.message == f"the Hub at http://127.0.0.1:{port} refuses the connection"
    assert caught.value.hint == "Is `awq-bot hub` running? Otherwise check HF_ENDPOINT."
    assert caught.value.exit_code == 8


def test_unreachable_endpoint_is_given_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_UNREACHABLE_S", 0.0)
    rounds = []

    def ask() -> None:
        rounds.append(1)
        raise httpx2.ConnectError("refused")

    with pytest.raises(EnvironmentProblem, match="the Hub refuses the connection"):
        call(ask)
    assert len(rounds) == 2


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


@pytest.mark.parametrize(
    "message", ["Invalid credentials in Authorization header", 'User Access Token "ci" is expired']
)
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
    assert client.write_token is not None
    assert client.write_token not in said


@pytest.mark.parametrize(
    ("endpoint", "loopback"),
    [
        ("http://127.0.0.1:8765", True),
        ("http://[::1]:8765", True),
        ("http://localhost", True),
        ("https://huggingface.co", False),
        ("https://127.0.0.1.example.com", False),
        ("", False),
    ],
)
def test_only_addresses_of_this_machine_are_loopback(endpoint: str, loopback: bool) -> None:
    assert is_loopback(endpoint) is loopback
