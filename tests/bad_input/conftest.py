from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from bot.localhub import LocalHub
from tests.support.sandbox import Sandbox
from tests.support.small_sandbox import (
    SandboxBefore,
    build_mixed_sandbox,
    copies_before,
    prepare_once,
    write_watchlist,
)
from tests.support.watch import BUILTIN_TEXT


@pytest.fixture
def sandbox(hub: LocalHub, tmp_path: Path) -> Sandbox:
    """With a watchlist of one model that is not on the Hub yet."""
    sandbox = Sandbox(hub, tmp_path)
    write_watchlist(sandbox, f"publish_to: quantized\nmodels:\n  - lab/small\n{BUILTIN_TEXT}")
    return sandbox


@pytest.fixture(scope="session")
def ready(shared: Path) -> Sandbox:
    """Done except for publishing; to be copied. Its Hub is not running."""
    with FileLock(shared / "mixed.lock"):
        return prepare_once(shared / "mixed", build_mixed_sandbox)


@pytest.fixture
def sandbox_before(ready: Sandbox, tmp_path: Path) -> Iterator[SandboxBefore]:
    with copies_before(ready, tmp_path) as make:
        yield make
