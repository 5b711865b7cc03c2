"""How the jobs of a run ended: what each job wrote down, checked, and what the jobs API says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from bot.errors import EnvironmentProblem, WatchlistError
from bot.files import write_atomic
from bot.github.attempts import tried_content
from bot.github.environment import redacted
from bot.github.matrix import HOSTED_RUNNER, job_minutes, runner_labels
from bot.records import Job, JobKind, JobResult, Plan, RunningJob, from_json, to_json

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
    labels = runner_labels(job) if stage == "quantize" else (HOSTED_RUNNER,)
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
    allowed = timedelta(minutes=job_minutes(job, stage))
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


Record = TypeVar("Record")

PLAN = "plan.json"
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,250}")  # what can be the name of an artifact, and of a file
_MOST_RESULT_BYTES = 1_000_000
_MOST_RESULTS = 5_000


def store_plan(folder: Path, plan: Plan) -> None:
    """plan.json, and one file per job that a leg reads."""
    write_atomic(folder / PLAN, to_json(plan).encode())
    for job in plan.jobs:
        write_atomic(_file_of(folder, job.job_id), to_json(job).encode())


def originals_of(folder: Path, job_id: str) -> Path:
    """Where upstream's own versions of the files that a job edits lie."""
    return folder / "originals" / job_id


def read_plan(folder: Path) -> Plan | None:
    """None when no plan was made."""
    return _read(Plan, folder / PLAN) if (folder / PLAN).exists() else None


def read_job(folder: Path, job_id: str) -> Job:
    """Raises WatchlistError when the plan has no such job."""
    path = _file_of(folder, job_id)
    job = _read(Job, path) if path.exists() else None
    if job is None or job.job_id != job_id:
        raise WatchlistError(f"{folder}: no job {job_id} in this plan", hint="Name one of its matrix's `job_id`s.")
    return job


def store_result(folder: Path, result: JobResult) -> None:
    write_atomic(_file_of(folder / _result_name(result), result.job_id), to_json(result).encode())


def read_results(folder: Path, plan: Plan) -> tuple[tuple[JobResult, ...], tuple[str, ...]]:
    """What the legs wrote, and a line for each file that is not believed: strangers' code ran beside some legs.

    Each in the folder of its artifact, whose name says of which leg it is; what lies elsewhere is not looked at.
    """
    jobs = {job.job_id: job for job in plan.jobs}
    results: list[JobResult] = []
    forged: list[str] = []
    for path in sorted(folder.glob("result-*/**/*.json"))[:_MOST_RESULTS]:
        result = _result(path)
        name = path.relative_to(folder)
        if result is None:
            forged.append(f"{name}: not a result")
        elif not believable(result, jobs):
            forged.append(f"{name}: speaks of what was not planned, or of what that job cannot have done")
        elif name.parent != Path(_result_name(result)):
            forged.append(f"{name}: speaks for another leg")
        else:
            results.append(result)
    return tuple(results), tuple(forged)


def _result_name(result: JobResult) -> str:
    """Of the artifact that hands a result on, as the workflows name it."""
    return f"result-{result.stage}-{result.job_id}"


def _result(path: Path) -> JobResult | None:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_RESULT_BYTES:
        return None
    try:
        return from_json(JobResult, redacted(path.read_text(encoding="utf-8")))
    except ValueError:
        return None


def _file_of(folder: Path, job_id: str) -> Path:
    if not _JOB_ID.fullmatch(job_id):
        raise WatchlistError(f"{job_id!r} is no job's name", hint="Take `job_id` from the plan's matrix.")
    return folder / f"{job_id}.json"


def _read(kind: type[Record], path: Path) -> Record:
    try:
        return from_json(kind, path.read_bytes())
    except (OSError, ValueError):
        hint = "Was it made by another version? Plan again."
        raise EnvironmentProblem(f"{path}: cannot be read as a {kind.__name__}", hint=hint) from None
