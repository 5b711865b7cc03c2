"""When the weights of a new release are old enough for `settle`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bot.records import Upstream
from bot.watch.release import Candidate
from bot.watch.settling import may_be_too_young, settling_skip, weight_paths
from tests.support.factories import entry, hub_file, upstream
from tests.support.watch import TOP, loaded, mistakes

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def candidate(*, hours: int = 2, day: str | None = "2026-11-29", source: Upstream | None = None) -> Candidate:
    """A release that waits for two hours."""
    asked = entry(settle_s=hours * 3600)
    return Candidate(entry=asked, upstream=source or upstream(last_modified=day), reason="first release")


@pytest.mark.parametrize(
    ("hours", "day", "asked"),
    [
        (2, "2026-11-29", True),
        (2, "2026-11-28", False),
        (13, "2026-11-28", True),
        (2, None, True),
        (0, None, False),
    ],
)
def test_the_hub_is_asked_only_about_repos_that_changed_of_late(hours: int, day: str | None, asked: bool) -> None:
    assert may_be_too_young(candidate(hours=hours, day=day), NOW) is asked


def test_young_weights_wait_and_the_reason_says_until_when() -> None:
    skip = settling_skip(candidate(), NOW - timedelta(minutes=35), NOW)
    assert skip is not None
    assert skip.reason == "settling: its weights changed 35 min 00 s ago, taken after 2026-11-29 13:25 UTC"
    assert (skip.blocked, skip.exit_code, "`settle`" in skip.hint) == (True, 0, True)


@pytest.mark.parametrize("age", [2 * HOUR, 3 * HOUR, timedelta(days=400)])
def test_weights_that_are_old_enough_are_taken(age: timedelta) -> None:
    assert settling_skip(candidate(), NOW - age, NOW) is None


@pytest.mark.parametrize(("day", "now"), [("2026-11-29", NOW), ("2026-11-20", NOW)])
def test_a_commit_from_the_future_waits_no_longer_than_one_of_now(day: str, now: datetime) -> None:
    ahead = now + timedelta(days=365)
    skip = settling_skip(candidate(day=day), ahead, now)
    assert (skip is None) == (day == "2026-11-20")
    assert settling_skip(candidate(day=day), ahead, now + 15 * HOUR) is None


def test_without_a_date_the_release_is_left_for_the_next_run() -> None:
    skip = settling_skip(candidate(), "the Hub answers 503", NOW)
    assert skip is not None
    assert (skip.exit_code, skip.reason) == (3, "when its weights changed is not known: the Hub answers 503")


def test_only_weights_and_their_index_count() -> None:
    names = ("README.md", "a.safetensors", "config.json", "model.safetensors.index.json", "pytorch_model.bin")
    source = upstream(files=tuple(hub_file(name) for name in names))
    assert weight_paths(source) == ("a.safetensors", "model.safetensors.index.json")


@pytest.mark.parametrize(("typed", "seconds"), [("90m", 5400), ("2h", 7200), ("1d", 86_400), ("0h", 0)])
def test_settle_is_read_as_seconds_and_a_models_own_wins(tmp_path: Path, typed: str, seconds: int) -> None:
    text = f"{TOP}  - lab/A\n  - {{repo_id: lab/B, settle: {typed}}}\ndefaults: {{settle: 3h}}\n"
    assert [item.settle_s for item in loaded(tmp_path, text)] == [10_800, seconds]
    assert loaded(tmp_path, f"{TOP}  - lab/A\n")[0].settle_s == 0


def test_a_wait_without_a_unit_is_a_mistake(tmp_path: Path) -> None:
    [found] = mistakes(tmp_path, f"{TOP}  - {{repo_id: lab/A, settle: 2 hours}}\n")
    assert (found.message, found.hint) == (
        "settle: 2 hours is not valid",
        "Write minutes, hours or days: 90m, 2h or 1d.",
    )
