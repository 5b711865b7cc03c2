"""A release that is ready to be published."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.hub.publish import Artifact
from bot.localhub import LocalHub
from bot.records import Job
from tests.support.repos import make_artifact, release_job


@pytest.fixture
def job(hub: LocalHub) -> Job:
    return release_job(hub)


@pytest.fixture
def artifact(tmp_path: Path, job: Job) -> Artifact:
    return make_artifact(tmp_path / "job", job)
