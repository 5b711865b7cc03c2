"""Two bots at one target: one release is complete, none is a mixture, and the next run finds nothing to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import stamina

from bot.hub import publish
from tests.trust.races import RACES, REQUESTS, Race, try_race

_PAIRS = 6  # of each kind, drawn at random: both are held
# In `make test`: where a publication once replaced a newer one, or was left private, and one of each other kind.
_SLICE = {
    Race(kind="first release held, newer", first=2),
    Race(kind="update held, newer", first=2),
    Race(kind="refresh held, newer", first=2),
    Race(kind="into an empty repo, twice", first=5),
    Race(kind="first release, twice", first=20),
    Race(kind="finish held, newer", first=7),
    Race(kind="newer held, update", first=12),
}


def _races() -> Iterator[Race]:
    for number, kind in enumerate(RACES):
        yield from (Race(kind=kind, first=first) for first in range(REQUESTS[kind]))
        random = Random(number)
        for _ in range(_PAIRS):
            yield Race(kind=kind, first=random.randrange(REQUESTS[kind]), second=random.randrange(30))


def _cases() -> list[object]:
    return [
        pytest.param(race, id=str(race), marks=() if race in _SLICE else pytest.mark.slow)
        for race in dict.fromkeys(_races())
    ]


def test_the_slice_is_of_races() -> None:
    assert set(_races()) >= _SLICE


@pytest.mark.parametrize("race", _cases())
def test_two_bots_leave_one_release(
    race: Race, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.setattr(publish, "pause", lambda _: None)
    with stamina.set_testing(True, attempts=3):
        ended = try_race(race, tmp_path)
    record_property("race", str(race))
    for wrong in ("mixed", "lost", "unnamed"):
        if getattr(ended, wrong):
            record_property("race_left", wrong)
    assert (ended.mixed, ended.lost, ended.unnamed) == ("", "", "")
