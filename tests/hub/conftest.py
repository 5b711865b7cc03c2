"""A release that is ready to be published."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.localhub import LocalHub
from tests.support.release import Release


@pytest.fixture
def release(hub: LocalHub, tmp_path: Path) -> Release:
    return Release.of(hub, tmp_path)
