"""How jobs ended, on this machine and on GitHub."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from bot.records.artifact import Publication, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """How often something was tried in vain, as its open issue says. content: what was tried, by digest.

    next_try: not before this time, ISO 8601 in UTC. issue: its number. run: the run that counted last.
    """

    target: str
    content: str
    count: int = 0
    next_try: str | None = None
    waits_for_person: bool = False
    issue: int | None = None
    run: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How one leg of a workflow ended, as it wrote it down. stage: quantize, publish or refresh."""

    job_id: str
    target: str
    repo_id: str
    content: str
    stage: str
    status: Literal["quantized", "published", "unchanged", "failed"]
    exit_code: int = 0
    message: str = ""
    hint: str = ""
    report: Report | None = None
    publication: Publication | None = None
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    """A job of a workflow run, as the API tells. stage and target: taken from its name.

    runner: the machine that took it; empty while none has.
    """

    stage: str
    target: str
    status: str
    conclusion: str | None = None
    url: str = ""
    runner: str = ""
    created: datetime | None = None
    started: datetime | None = None
    completed: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTimes:
    """When the watch made a plan last. oldest_run: of those looked at, where none of them has one."""

    last_good: datetime | None = None
    oldest_run: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a stage ended badly, as its own process wrote it down."""

    stage: str
    exit_code: int
    message: str
    hint: str
