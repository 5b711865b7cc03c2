from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from bot.localhub import LocalHub
from tests.support.mixed_sandbox import Before, build_mixed_sandbox, write_watchlist
from tests.support.sandbox import Sandbox
from tests.support.small_model import prepare_once
from tests.support.watchlists import BUILTIN_TEXT


@pytest.fixture
def sandbox(hub: LocalHub, tmp_path: Path) -> Sandbox:
    """With a watchlist of one model that is not on the Hub yet."""
    sandbox = Sandbox(hub, tmp_path)
    write_watchlist(sandbox, f"publish_to: quantized\nmodels:\n  - lab/small\n{BUILTIN_TEXT}")
    return sandbox


@pytest.fixture(scope="session")
def ready(shared: Path) -> Sandbox:
    """Done but for publishing; to be copied. Its Hub is at rest."""
    with FileLock(shared / "mixed.lock"):
        return prepare_once(shared / "mixed", build_mixed_sandbox)


@pytest.fixture
def before(ready: Sandbox, tmp_path: Path) -> Iterator[Before]:
    """A copy of the ready sandbox in which the stage of the given name has not run; its Hub is up."""
    copies: list[Sandbox] = []

    def make(stage: str) -> Sandbox:
        sandbox = ready.copy_to(tmp_path / stage)
        undone = {"pull": ("weights.json", "source"), "quantize": ("quantized.json", "quantized", "layers")}
        for name in undone.get(stage, ()):
            path = sandbox.jobs[0] / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        sandbox.hub.start()
        copies.append(sandbox)
        return sandbox

    yield make
    for sandbox in copies:
        sandbox.hub.stop()
