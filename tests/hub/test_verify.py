"""Anybody's look at a published repo: what differs, and why it cannot be looked at."""

from __future__ import annotations

import pytest

from bot.errors import BotError, PublishError, UpstreamError
from bot.hub.publish import Artifact, publish
from bot.hub.session import Hub
from bot.hub.verify import verify
from bot.localhub import Fault, LocalHub
from bot.records import Check, Job, no_progress
from tests.support.repos import TARGET, as_bot


@pytest.fixture
def published(hub: LocalHub, job: Job, artifact: Artifact) -> Job:
    publish(as_bot(hub), job, artifact, no_progress)
    return job


def verified(hub: LocalHub, repo_id: str = TARGET, revision: str | None = None) -> tuple[Check, ...]:
    stranger = Hub(hub.endpoint, hub.token("reader", role="read"))
    return verify(stranger, repo_id, revision=revision, progress=no_progress)


def refused(hub: LocalHub, kind: type[BotError], repo_id: str = TARGET, revision: str | None = None) -> BotError:
    with pytest.raises(kind) as caught:
        verified(hub, repo_id, revision)
    return caught.value


def test_release_is_as_it_was_published_at_its_head_and_its_tag(hub: LocalHub, published: Job) -> None:
    for revision in (None, "main", published.tag, hub.history(TARGET)[0].sha):
        assert {check.status for check in verified(hub, revision=revision)} == {"ok"}


def test_older_release_is_held_against_its_own_provenance(hub: LocalHub, published: Job) -> None:
    hub.seed(TARGET, {"config.json": "{ }"})
    assert {check.status for check in verified(hub, revision=published.tag)} == {"ok"}
    failed = [check.name for check in verified(hub) if check.status == "failed"]
    assert failed == ["tag", "config.json"]


def test_revision_that_is_not_there_is_named_with_those_that_are(hub: LocalHub, published: Job) -> None:
    error = refused(hub, UpstreamError, revision="upstream-mistyped")
    assert error.message == f"{TARGET}: no revision upstream-mistyped"
    assert published.tag in error.hint


def test_gated_repo_is_said_to_be_closed_and_not_to_be_somebody_elses(hub: LocalHub, published: Job) -> None:
    hub.seed(TARGET, {}, gated="auto")
    error = refused(hub, UpstreamError)
    assert "answers 403" in error.message
    assert error.hint == "If it is gated, ask for access and set HF_TOKEN."
    hub.grant_access(TARGET, "reader")
    assert verified(hub)


def test_repo_whose_refs_cannot_be_read_is_named(hub: LocalHub, published: Job) -> None:
    hub.faults.add(Fault(path="/refs", status=403, times=None))
    assert "answers 403" in refused(hub, UpstreamError).message


@pytest.mark.parametrize("content", [None, "{"])
def test_what_the_bot_did_not_publish_is_said_to_be_that(hub: LocalHub, content: str | None) -> None:
    hub.seed(TARGET, {"README.md": "mine"} if content is None else {"provenance.json": content})
    assert "awq-bot did not" in refused(hub, PublishError).hint


def test_repo_that_is_not_there_is_named(hub: LocalHub) -> None:
    assert "no such repo" in refused(hub, UpstreamError, "quantized/Nothing").message
