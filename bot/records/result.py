"""How a job ended, and what GitHub says of workflow jobs and earlier attempts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from bot.errors import ERRORS_BY_EXIT_CODE, BotError
from bot.records.artifact import Publication
from bot.records.plan import Job
from bot.records.report import Report


class Status(StrEnum):
    """What became of a job. Only `failed` counts as an attempt."""

    READY = "ready"  # quantized and measured, not published
    PUBLISHED = "published"
    UNCHANGED = "unchanged"  # it was published already
    FAILED = "failed"
    STOPPED = "stopped"  # cancelled by a person, skipped, or not started
    UNKNOWN = "unknown"  # no result, and its state on GitHub is unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a job, or one stage of it, ended.

    stage: `run` for a whole job on one machine; `quantize`, `publish` or `refresh` for a job of the workflow; in a
    child process its verb. content: Job.attempt_digest. hint: what is left to do, also after a success. url: the
    log on GitHub.
    """

    job_id: str
    target: str
    repo_id: str
    content: str
    stage: str
    status: Status
    exit_code: int = 0
    message: str = ""
    hint: str = ""
    report: Report | None = None
    publication: Publication | None = None
    duration_s: float = 0.0
    url: str = ""

    @property
    def error(self) -> BotError | None:
        """What failed, as the error that was raised where the job ran; None unless it failed."""
        if self.status is not Status.FAILED:
            return None
        return ERRORS_BY_EXIT_CODE.get(self.exit_code, BotError)(self.message, hint=self.hint)


def job_result(
    job: Job,
    *,
    stage: str,
    status: Status,
    error: BotError | None = None,
    message: str = "",
    hint: str = "",
    report: Report | None = None,
    publication: Publication | None = None,
    duration_s: float = 0.0,
    url: str = "",
) -> JobResult:
    """The result of a job of the plan. error: gives message, hint and exit code."""
    return JobResult(
        job_id=job.job_id,
        target=job.entry.target,
        repo_id=job.entry.repo_id,
        content=job.attempt_digest,
        stage=stage,
        status=status,
        exit_code=error.exit_code if error is not None else 0,
        message=error.message if error is not None else message,
        hint=error.hint if error is not None else hint,
        report=report,
        publication=publication,
        duration_s=duration_s,
        url=url,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """How often a target failed, as its open issue records it. content: Job.attempt_digest of what failed.

    next_try: not before this time, ISO 8601 in UTC. issue: its number. run: the last run that was counted.
    """

    target: str
    content: str
    count: int = 0
    next_try: str | None = None
    waits_for_person: bool = False
    issue: int | None = None
    run: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    """A job of a workflow run, as GitHub's API reports it. stage and target are taken from its name.

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
    """When the watch workflow last made a plan. oldest_run: of the runs looked at, if none of them made one."""

    last_success: datetime | None = None
    oldest_run: datetime | None = None
