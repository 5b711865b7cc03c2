from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.localhub import LocalHub
from tests.support.sandbox import Sandbox
from tests.support.small_sandbox import (
    SandboxBefore,
    copies_before,
    write_watchlist,
)
from tests.support.watch import BUILTIN_TEXT


@pytest.fixture
def sandbox(hub: LocalHub, tmp_path: Path) -> Sandbox:
    """With a watchlist of one model that is not on the Hub yet."""
    sandbox = Sandbox(hub, tmp_path)
    write_watchlist(sandbox, f"publish_to: quantized\nmodels:\n  - lab/small\n{BUILTIN_TEXT}")
    return sandbox


@pytest.fixture
def sandbox_before(small_sandbox: Sandbox, tmp_path: Path) -> Iterator[SandboxBefore]:
    with copies_before(small_sandbox, tmp_path) as make:
        yield make
