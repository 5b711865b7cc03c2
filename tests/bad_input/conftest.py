from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from bot.localhub import LocalHub
from tests.support.mixed_sandbox import Before, build_mixed_house, write_watchlist
from tests.support.sandbox import House
from tests.support.small_model import prepare_once


@pytest.fixture
def house(hub: LocalHub, tmp_path: Path) -> House:
    """With a watchlist of one model that is not on the Hub yet."""
    house = House(hub, tmp_path)
    write_watchlist(house, "publish_to: quantized\nmodels:\n  - lab/small\n")
    return house


@pytest.fixture(scope="session")
def ready(shared: Path) -> House:
    """Done but for publishing; to be copied. Its Hub is at rest."""
    with FileLock(shared / "mixed.lock"):
        return prepare_once(shared / "mixed", build_mixed_house)


@pytest.fixture
def before(ready: House, tmp_path: Path) -> Iterator[Before]:
    """A copy of the ready house in which the stage of the given name has not run; its Hub is up."""
    copies: list[House] = []

    def make(stage: str) -> House:
        house = ready.copy_to(tmp_path / stage)
        undone = {"pull": ("weights.json", "source"), "quantize": ("quantized.json", "quantized", "layers")}
        for name in undone.get(stage, ()):
            path = house.jobs[0] / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        house.hub.start()
        copies.append(house)
        return house

    yield make
    for house in copies:
        house.hub.stop()
