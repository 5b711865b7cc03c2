"""Watchlists as someone typed them, read; and decisions of the plan, as the kind that a test expects."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.records import Job, Skip, WatchEntry
from bot.watch.release import Candidate
from bot.watch.watchlist import InvalidWatchlistError, Mistake, load

SHA = "0123456789abcdef0123456789abcdef01234567"
TOP = "publish_to: me\nmodels:\n"  # so that the first model is on line 3
# The default data sets are not on a local Hub.
BUILTIN_TEXT = "defaults: {calibration: {sources: [{builtin: stdlib}]}}\n"


def loaded(folder: Path, text: str | bytes) -> tuple[WatchEntry, ...]:
    path = folder / "watchlist.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load(path)


def mistakes(folder: Path, text: str | bytes) -> tuple[Mistake, ...]:
    with pytest.raises(InvalidWatchlistError) as caught:
        loaded(folder, text)
    return caught.value.mistakes


def candidate(found: Skip | Job | Candidate) -> Candidate:
    assert isinstance(found, Candidate), found
    return found


def job(found: Skip | Job | Candidate) -> Job:
    assert isinstance(found, Job), found
    return found


def skip(found: Skip | Job | Candidate) -> Skip:
    assert isinstance(found, Skip), found
    return found
