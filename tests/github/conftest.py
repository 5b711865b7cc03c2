from __future__ import annotations

import pytest

from bot.records import Job
from tests.support.workspace import Workspace


@pytest.fixture
def planned(workspace: Workspace) -> Job:
    """The one job of a plan."""
    workspace.seed("Tiny")
    workspace.plan()
    [job] = workspace.planned()
    return job
