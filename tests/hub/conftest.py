from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.localhub import LocalHub
from tests.support.github_api.id_token import IdTokens
from tests.support.release import Release
from tests.support.workflow_identity import running_workflow


@pytest.fixture
def release(hub: LocalHub, tmp_path: Path) -> Release:
    """Ready to be published."""
    return Release.of(hub, tmp_path)


@pytest.fixture
def workflow(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[IdTokens]:
    with running_workflow(hub, monkeypatch) as tokens:
        yield tokens
