"""How the jobs of a run ended, from what each leg wrote down and what the jobs API says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from bot.errors import EnvironmentProblem
from bot.records import Job, JobKind, JobResult, RunningJob
from bot.watch.attempts import tried_content
from bot.watch.plan import HOSTED_RUNNER, leg_minutes

_LONG_IN_QUEUE = timedelta(hours=23)  # after about 24 GitHub cancels what no machine of one's own took
_TOLERANCE = timedelta(minutes=2)


class Fate(StrEnum):
    """What became of a planned job. Only `failed` counts as an attempt."""

    PUBLISHED = "published"
    UNCHANGED = "unchanged"  # somebody had done it already
    FAILED = "failed"
    STOPPED = "stopped"  # cancelled by a person, skipped, or not begun
    UNKNOWN = "unknown"  # nobody can say


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """One job and what became of it. result: what its last leg wrote; url: the job's log."""

    job: Job
    fate: Fate
    stage: str = ""
    message: str = ""
    hint: str = ""
    exit_code: int = 0
    result: JobResult | None = None
    url: str = ""


def believable(result: JobResult, jobs: Mapping[str, Job]) -> bool:
    """Whether a result speaks of a planned job, and of what that job's leg can have done.

    A leg on a GPU runner cannot have published anything: it has no credential for it.
    """
    job = jobs.get(result.job_id)
    if job is None or (result.target, result.content) != (job.entry.target, tried_content(job)):
        return False
    possible = {
        "quantize": {"quantized", "unchanged", "failed"},
        "publish": {"published", "unchanged", "failed"},
        "refresh": {"published", "unchanged", "failed"},
    }
    stages = {"quantize", "publish"} if job.kind is JobKind.RELEASE else {"refresh"}
    return result.stage in stages and result.status in possible[result.stage]


def endings(
    jobs: Sequence[Job], results: Sequence[JobResult], running: Sequence[RunningJob] | None
) -> tuple[Ending, ...]:
    """One per planned job. results: believable ones. running: this run's jobs; None when the API did not say."""
    legs = {(result.job_id, result.stage): result for result in results if not _contradicted(result, running)}
    return tuple(_ending(job, legs, running) for job in jobs)


def _contradicted(result: JobResult, running: Sequence[RunningJob] | None) -> bool:
    """Whether GitHub saw that a leg did not end as well as it says: any job can name its artifact as another's."""
    if result.status not in ("published", "unchanged"):
        return False
    # Publishing never begins where quantizing failed; on the GPU runner it is a step of the same job.
    stages = ("quantize", "publish") if result.stage == "publish" else (result.stage,)
    seen = [_seen(result.target, stage, running) for stage in stages]
    return any(leg is not None and leg.status == "completed" and leg.conclusion != "success" for leg in seen)


def _ending(job: Job, legs: Mapping[tuple[str, str], JobResult], running: Sequence[RunningJob] | None) -> Ending:
    stage = _last_stage(job, legs, running)
    result, seen = legs.get((job.job_id, stage)), _seen(job.entry.target, stage, running)
    # What was quantized and goes no further was lost on its way.
    if result is None or result.status == "quantized":
        return _without_result(job, stage, seen, known=running is not None)
    return _with_result(job, result, seen)


def _last_stage(job: Job, legs: Mapping[tuple[str, str], JobResult], running: Sequence[RunningJob] | None) -> str:
    """The leg that decides: `publish` only where it had something to publish."""
    if job.kind is not JobKind.RELEASE:
        return "refresh"
    if (job.job_id, "publish") in legs:
        return "publish"
    quantized, sent = legs.get((job.job_id, "quantize")), _seen(job.entry.target, "publish", running)
    began = sent is not None and sent.conclusion != "skipped"
    if quantized is None:
        return "publish" if began else "quantize"
    made, by = quantized.status == "quantized", _seen(job.entry.target, "quantize", running)
    lost = by is not None and by.conclusion not in (None, "success") and not began
    return "publish" if made and not lost else "quantize"


def _seen(target: str, stage: str, running: Sequence[RunningJob] | None) -> RunningJob | None:
    mine = [item for item in running or () if (item.stage, item.target) == (stage, target)]
    return mine[-1] if mine else None


def _with_result(job: Job, result: JobResult, seen: RunningJob | None) -> Ending:
    fates = {"published": Fate.PUBLISHED, "unchanged": Fate.UNCHANGED, "failed": Fate.FAILED}
    return Ending(
        job=job,
        fate=fates[result.status],
        stage=result.stage,
        message=result.message,
        hint=result.hint,
        exit_code=result.exit_code,
        result=result,
        url=seen.url if seen is not None else "",
    )


def _without_result(job: Job, stage: str, seen: RunningJob | None, *, known: bool) -> Ending:
    """What the API knows of a leg that wrote nothing."""
    if not known:
        return Ending(
            job=job, fate=Fate.UNKNOWN, stage=stage, message="it left no result, and GitHub does not answer"
        )
    if seen is None or seen.status != "completed":
        return Ending(job=job, fate=Fate.STOPPED, stage=stage, message="it was not begun")
    conclusion = _conclusion(job, stage, seen)
    if conclusion in ("cancelled", "skipped"):
        return Ending(job=job, fate=Fate.STOPPED, stage=stage, message=f"it was {conclusion}", url=seen.url)
    message, hint = _LOST.get(conclusion, _LOST["failure"])
    labels = job.runner_labels if stage == "quantize" else (HOSTED_RUNNER,)
    return Ending(
        job=job,
        fate=Fate.FAILED,
        stage=stage,
        message=f"{job.entry.repo_id}: {stage}: {message.format(labels=', '.join(labels))}",
        hint=hint,
        exit_code=EnvironmentProblem.exit_code,
        url=seen.url,
    )


def _conclusion(job: Job, stage: str, seen: RunningJob) -> str:
    """As GitHub says it, but that it says `cancelled` also of what no person stopped."""
    if seen.conclusion != "cancelled" or seen.completed is None:
        return seen.conclusion or ""
    if not seen.runner:
        in_vain = seen.created is not None and seen.completed - seen.created > _LONG_IN_QUEUE
        return "not_taken" if in_vain else "cancelled"
    allowed = timedelta(minutes=leg_minutes(job, stage))
    ran_out = seen.started is not None and seen.completed - seen.started > allowed - _TOLERANCE
    return "timed_out" if ran_out else "cancelled"


_LOST = {
    "failure": (
        "the runner was lost, or a step failed that is not the bot's",
        "Read the job's log, and what the runner's machine says: out of memory, disk, or switched off.",
    ),
    "timed_out": (
        "it took longer than the workflow allows",
        "Four times the estimate is allowed, and time to move the files. Does somebody else use the runner's GPU?"
        " Is its line slow?",
    ),
    "not_taken": (
        "no runner with the labels {labels} took it within a day",
        "Is one connected that has all of these labels? With more jobs than runners, lower AWQ_BOT_MOST_JOBS.",
    ),
    "success": (
        "the job ended well and left no result",
        "Its artifact was not uploaded, or was deleted. Run the workflow again.",
    ),
}
