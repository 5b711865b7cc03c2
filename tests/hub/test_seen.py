"""The file of what was up to date: whatever is in it, it is read or left; and whose turn it is to be looked at."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bot.hub import seen
from bot.hub.seen import DAY_S, Seen, SeenList, SeenModel, is_due, nothing_seen, read_seen, store_seen, turns
from bot.records import to_json
from tests.support import factories
from tests.support.watched import watched

HUB = "https://hub.example"
NOW = 1_800_000_000
SHA, DIGEST = "a" * 40, "b" * 64
MODEL = SeenModel(source=SHA, files=DIGEST, target=SHA, asked=DIGEST, tag="t", looked_s=NOW, read_s=NOW)
FULL = replace(nothing_seen(HUB), models={"lab/A@main q/A": MODEL}, authors={"lab": SeenList(pages=3, read_s=NOW)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "awq-bot" / "seen" / "hub.json"


def test_what_is_stored_is_read(path: Path) -> None:
    store_seen(path, FULL, now_s=NOW)
    assert read_seen(path, HUB) == FULL
    assert [item.name for item in path.parent.iterdir()] == ["hub.json"]


def test_a_file_for_each_hub_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert seen.seen_file(HUB).parent == tmp_path / "awq-bot" / "seen"
    assert seen.seen_file(HUB) != seen.seen_file(HUB + "2")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert seen.seen_file(HUB).parent == tmp_path / "home" / ".cache" / "awq-bot" / "seen"


def _with(**fields: object) -> str:
    return json.dumps(json.loads(to_json(FULL)) | fields)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"null",
        b"[" * 100_000,
        to_json(FULL).encode()[:-20],
        to_json(FULL).encode().replace(b"models", b"m\xff"),
        _with(endpoint="https://other.example").encode(),
        _with(code="0" * 64).encode(),
        _with(models=[]).encode(),
        _with(models={"a": {}}).encode(),
        _with(models={"a": json.loads(to_json(MODEL)) | {"source": "main"}}).encode(),
        _with(models={"a": json.loads(to_json(MODEL)) | {"looked_s": "soon"}}).encode(),
        _with(authors={"lab": 3}).encode(),
        b" " * 40_000_000 + _with().encode(),
    ],
    ids=[
        "empty",
        "zeros",
        "null",
        "deep",
        "cut off",
        "bytes",
        "another Hub",
        "another version",
        "a list",
        "no fields",
        "no commit",
        "no time",
        "no list",
        "large",
    ],
)
def test_a_file_of_another_form_is_none(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert read_seen(path, HUB) == nothing_seen(HUB)


def test_what_is_no_file_is_none_and_no_error(path: Path) -> None:
    assert read_seen(path, HUB) == nothing_seen(HUB)
    path.mkdir(parents=True)
    assert read_seen(path, HUB) == nothing_seen(HUB)
    store_seen(path, FULL, now_s=NOW)
    os.mkfifo(path.with_name("pipe"))
    assert read_seen(path.with_name("pipe"), HUB) == nothing_seen(HUB)


def test_a_folder_that_cannot_be_made_is_no_error(path: Path) -> None:
    path.parent.parent.write_text("a file where the folder should be")
    store_seen(path, FULL, now_s=NOW)
    assert path.parent.parent.is_file()


def test_what_was_long_unused_is_dropped(path: Path) -> None:
    old = replace(MODEL, looked_s=NOW - 31 * DAY_S)
    ahead = replace(MODEL, looked_s=NOW + 1)
    models = {"new": MODEL, "old": old, "ahead": ahead}
    authors = {"new": SeenList(pages=3, read_s=NOW - DAY_S), "old": SeenList(pages=3, read_s=NOW - 8 * DAY_S)}
    store_seen(path, replace(FULL, models=models, authors=authors), now_s=NOW)
    kept = read_seen(path, HUB)
    assert (list(kept.models), list(kept.authors)) == (["new"], ["new"])


def test_the_file_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "_MOST_MODELS", 3)
    models = {str(number): replace(MODEL, looked_s=NOW - number) for number in range(9)}
    store_seen(path, replace(FULL, models=models), now_s=NOW)
    assert sorted(read_seen(path, HUB).models) == ["0", "1", "2"]


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_all_have_their_turn_once_in_a_period_spread_evenly(count: int) -> None:
    keys = [f"lab/M{number}" for number in range(count)]
    turn = turns(reversed(keys))
    assert turn == turns(keys)
    last = dict.fromkeys(keys, NOW + 1234)
    looked = dict.fromkeys(keys, 0)
    for hour in range(1, 25):
        now = NOW + 1234 + 3600 * hour
        due = [key for key in keys if is_due(turn[key].tag, last[key], now, DAY_S)]
        assert len(due) <= -(-count // 24) + 1
        for key in due:
            last[key] = now
            looked[key] += 1
    assert set(looked.values()) == {1}


def test_no_hour_reads_much_more_than_another() -> None:
    """Of 1,000 models, in eight weeks of hourly plans; all of a model is read when it is the turn of its tag."""
    turn = turns(f"lab/M{number}" for number in range(1000))
    looked, read = dict.fromkeys(turn, NOW), dict.fromkeys(turn, NOW)
    times, most = dict.fromkeys(turn, 0), 0
    for now in range(NOW + 3600, NOW + 57 * DAY_S, 3600):
        tags = [key for key in turn if is_due(turn[key].tag, looked[key], now, DAY_S)]
        whole = [key for key in tags if is_due(turn[key].whole, read[key], now, seen.ALL_S)]
        most = max(most, len(tags) + 2 * len(whole))
        looked |= dict.fromkeys(tags, now)
        read |= dict.fromkeys(whole, now)
        for key in whole:
            times[key] += 1
    # With the lists of 50 authors, and of the targets' owner, these are the requests of a plan.
    assert most <= 48
    assert set(times.values()) <= {2, 3}


def test_what_is_older_than_the_period_or_of_another_clock_is_due() -> None:
    assert is_due(0.5, NOW - DAY_S, NOW, DAY_S)
    assert is_due(0.5, NOW + 1, NOW, DAY_S)
    assert is_due(0.5, 0, NOW, DAY_S)
    assert not is_due(0.5, NOW, NOW, DAY_S)
    assert is_due(0.5, 10**300, NOW, DAY_S)


def test_lists_are_read_where_they_cost_less_than_single_repos() -> None:
    entries = [
        watched("big", "A", owner="mine"),
        watched("big", "B", owner="mine"),
        watched("Pair", "C", owner="Mine"),
        watched("pair", "D", owner="mine"),
        watched("solo", "E", owner="alone"),
        watched("secret", "F", owner="secret", private=True),
        watched("branch", "G", owner="mine", revision="v1"),
        watched("branch", "H", owner="mine", revision="v1"),
    ]
    several = replace(nothing_seen(HUB), authors={"big": SeenList(pages=2, read_s=NOW)})
    # A target costs two requests, a source one; a list of one page is worth it from two requests on.
    assert seen.worth_listing(entries, (), several, NOW) == {"mine": 11, "pair": 1, "alone": 1}
    assert seen.worth_listing(entries[:2], (), several, NOW) == {}
    later = seen.worth_listing(entries, (), several, NOW + 8 * DAY_S)
    assert later == {"big": 1, "mine": 11, "pair": 1, "alone": 1}


def test_the_commit_and_the_card_change_nothing_that_counts() -> None:
    source = factories.upstream()
    files = (*source.files, factories.hub_file("README.md"), factories.hub_file(".gitattributes"))
    other = replace(source, sha=SHA, last_modified="2026-01-01", files=files[::-1], license_url="https://x")
    assert seen.files_of(other) == seen.files_of(source)
    assert seen.files_of(replace(source, licenses=("mit",))) != seen.files_of(source)
    assert seen.files_of(replace(source, files=source.files[:-1])) != seen.files_of(source)


def test_two_versions_of_the_code_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    before = seen._code.__wrapped__()
    monkeypatch.setattr("bot.__version__", "9")
    assert seen._code.__wrapped__() != before


def test_an_empty_memory_is_one_of_this_hub() -> None:
    assert nothing_seen(HUB).endpoint == HUB
    assert Seen().models == {}
