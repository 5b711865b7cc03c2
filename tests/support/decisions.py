"""What was decided, as the kind that a test expects."""

from __future__ import annotations

from bot.records import Job, Skip
from bot.watch.release import Candidate


def candidate(found: Skip | Job | Candidate) -> Candidate:
    assert isinstance(found, Candidate), found
    return found


def job(found: Skip | Job | Candidate) -> Job:
    assert isinstance(found, Job), found
    return found


def skip(found: Skip | Job | Candidate) -> Skip:
    assert isinstance(found, Skip), found
    return found
