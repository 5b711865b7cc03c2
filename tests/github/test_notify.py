"""What is sent to a webhook, in which form, and what happens when it does not answer."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from bot.github import notify
from bot.github.notify import WEBHOOK, Event, events_of_results, message
from bot.records import Attempts, Publication, Status, job_result
from tests.github.conftest import HOOK_PATH, Hook
from tests.support.factories import job, report
from tests.support.workspace import Workspace

EVENT = Event(
    kind="published",
    repo_id="lab/Tiny",
    target="quantized/Tiny-awq",
    said="KL 0.0500",
    url="https://hub.example/quantized/Tiny-awq",
)


def results() -> tuple[tuple[Any, ...], tuple[Attempts, ...]]:
    made = job()
    place: dict[str, Any] = {
        "sha": "a" * 40,
        "tag": "t",
        "url": EVENT.url,
        "private": False,
        "new": True,
        "duration_s": 1.0,
    }
    published = job_result(
        made,
        stage="publish",
        status=Status.PUBLISHED,
        report=report(),
        publication=Publication(repo_id=made.entry.target, **place),
    )
    failed = replace(
        job_result(made, stage="quantize", status=Status.FAILED),
        target="q/Last-awq",
        message="layer 3: <not> finite\nat all",
    )
    again = replace(failed, target="q/Again-awq")
    attempts = (
        Attempts(target="q/Last-awq", content="c", count=4, waits_for_person=True, issue=7),
        Attempts(target="q/Again-awq", content="c", count=1, next_try="2026-11-22T04:17:05Z", issue=8),
    )
    return (published, failed, again, replace(failed, status=Status.STOPPED)), attempts


def test_only_what_was_published_and_what_failed_for_good_is_sent() -> None:
    ended, attempts = results()
    published, failed = events_of_results(ended, attempts, issues_url="https://github.com/x/y/issues")
    assert (published.kind, published.target, published.url) == ("published", "quantized/Tiny-awq", EVENT.url)
    assert published.said.startswith("KL 0.")
    assert failed.kind == "failed"
    assert failed.said == "layer 3: <not> finite at all"
    assert failed.url == "https://github.com/x/y/issues/7"


def test_each_service_gets_its_form() -> None:
    events = [replace(EVENT, said="<!channel> @everyone *x* & y")]
    slack = message(events, host="hooks.slack.com")
    assert slack["mrkdwn"] is False
    assert "&lt;!channel&gt; @everyone *x* &amp; y" in str(slack["text"])
    discord = message(events, host="discord.com")
    assert discord["allowed_mentions"] == {"parse": []}
    assert r"\*x\*" in str(discord["content"])
    plain = message(events, host="example.com")
    assert plain["events"] == [
        {
            "kind": "published",
            "repo_id": "lab/Tiny",
            "target": "quantized/Tiny-awq",
            "said": "<!channel> @everyone *x* & y",
            "url": EVENT.url,
        }
    ]


@pytest.mark.parametrize("host", ["hooks.slack.com", "discord.com", "example.com"])
def test_a_long_list_is_cut_and_counted(host: str) -> None:
    sent = message([EVENT] * 300, host=host)
    text = str(sent.get("text", sent.get("content")))
    assert len(text) < 2000
    shown = text.count("published: ")
    assert text.endswith(f"and {300 - shown} more")


def test_a_report_sends_one_request(workspace: Workspace, hook: Hook) -> None:
    workspace.seed("Tiny")
    workspace.plan()
    [planned] = workspace.planned()
    place: dict[str, Any] = {
        "repo_id": planned.entry.target,
        "sha": "a" * 40,
        "tag": planned.tag,
        "url": f"{workspace.hub.endpoint}/{planned.entry.target}",
        "private": False,
        "new": True,
        "duration_s": 3.0,
    }
    done = {"exit_code": 0, "message": "", "hint": "", "publication": Publication(**place)}
    workspace.leave(planned, stage="publish", status="published", **done)
    ended = workspace.report(**{WEBHOOK: hook.url})
    assert (ended.code, ended.annotations) == (0, [])
    [sent] = hook.sent
    assert [event["kind"] for event in sent["events"]] == ["published"]
    assert HOOK_PATH not in ended.everything


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_webhook_that_refuses_is_a_warning_without_its_url(
    workspace: Workspace, hook: Hook, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook.status = status
    monkeypatch.setenv(WEBHOOK, hook.url)
    assert notify.notify([EVENT]) == f"The webhook answered {status}."
    assert len(hook.sent) == 1


def test_a_slow_webhook_is_not_waited_for(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    hook.waits = threading.Event()
    monkeypatch.setenv(WEBHOOK, hook.url)
    monkeypatch.setattr(notify, "_TIMEOUT_S", 0.2)
    assert notify.notify([EVENT]) == "The webhook did not answer: ReadTimeout."
    hook.waits.set()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.com/hook", f"{WEBHOOK} is no https:// URL, so nothing was sent."),
        ("example.com", f"{WEBHOOK} is no https:// URL, so nothing was sent."),
        ("https://[", f"{WEBHOOK} is no https:// URL, so nothing was sent."),
        ("http://127.0.0.1:9/", "The webhook did not answer: ConnectError."),
        ("", ""),
    ],
)
def test_a_url_that_is_none_is_said(url: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEBHOOK, url)
    assert notify.notify([EVENT]) == said


def test_nothing_is_sent_without_an_event(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEBHOOK, hook.url)
    assert notify.notify([]) == ""
    assert hook.sent == []
