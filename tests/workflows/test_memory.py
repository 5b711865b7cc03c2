"""What hourly plans remember from one run to the next, through GitHub's cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bot.watch import watchlist as watchlists
from tests.support.watched import publish
from tests.workflows.deployment import Deployment, open_deployment
from tests.workflows.interpreter.parser import WorkflowParser


@pytest.fixture
def published(parser: WorkflowParser, tmp_path: Path) -> Iterator[Deployment]:
    """Three models, with complete releases. Each machine has an empty home, as GitHub's have."""
    with open_deployment(parser, tmp_path / "d", "one", "two", "three") as deployment:
        del deployment.repository.machine["XDG_CACHE_HOME"]
        publish(deployment.hub, watchlists.load(deployment.repository.checkout / "watchlist.yaml"))
        yield deployment


def asked(deployment: Deployment, event: str, **payload: Any) -> int:
    """How many requests a run makes in which nothing is new."""
    deployment.hub.clear_requests()
    assert deployment.watch(event, **payload).results == {"plan": "success"}
    return len([request for request in deployment.hub.requests if "agent-harnesses" not in request.path])


def test_a_scheduled_run_asks_for_what_may_have_changed_since_the_last_one(published: Deployment) -> None:
    caches = published.repository.caches
    assert [asked(published, "schedule") for _ in range(2)] == [2 + 3 * 3, 2]
    assert len(caches.keys()) == 2
    # A run that is started by hand may be of another branch than the default one.
    assert asked(published, "workflow_dispatch", repository={"default_branch": "stable"}) == 2 + 3 * 3
    assert len(caches.keys()) == 2
    assert asked(published, "workflow_dispatch", repository={"default_branch": "main"}) == 2
    assert len(caches.keys()) == 3
