"""How the jobs of a run ended: each job's result file, validated; missing results come from GitHub's jobs API."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from bot.checkpoint.repo_files import PROVENANCE
from bot.errors import EnvironmentProblem, WatchlistError
from bot.files import write_atomic
from bot.github.matrix import HOSTED_RUNNER, job_minutes, runner_labels
from bot.records import Job, JobKind, JobResult, Plan, RunningJob, Status, from_json, job_result, to_json
from bot.redaction import redacted

_LONG_IN_QUEUE = timedelta(hours=23)  # GitHub cancels a job that no self-hosted runner took for 24 hours
_TOLERANCE = timedelta(minutes=2)

Results = Mapping[tuple[str, str], JobResult]  # by job_id and stage

# What each stage of a job can have done. A job on a GPU runner has no credential to publish with.
_POSSIBLE = {
    "quantize": {Status.READY, Status.UNCHANGED, Status.FAILED},
    "publish": {Status.PUBLISHED, Status.UNCHANGED, Status.FAILED},
    "refresh": {Status.PUBLISHED, Status.UNCHANGED, Status.FAILED},
}


def is_plausible(result: JobResult, jobs: Mapping[str, Job]) -> bool:
    """Whether a result is about a planned job, and reports what this stage of it can have done."""
    job = jobs.get(result.job_id)
    if job is None or (result.target, result.content) != (job.entry.target, job.attempt_digest):
        return False
    stages = {"quantize", "publish"} if job.kind is JobKind.RELEASE else {"refresh"}
    return result.stage in stages and result.status in _POSSIBLE[result.stage]


def final_results(
    jobs: Sequence[Job], results: Sequence[JobResult], running: Sequence[RunningJob] | None
) -> tuple[JobResult, ...]:
    """One per planned job, in order. results: plausible ones. running: this run's jobs; None if unknown."""
    trusted = {(item.job_id, item.stage): item for item in results if not _is_contradicted(item, running)}
    return tuple(_final_result(job, trusted, running) for job in jobs)


def _is_contradicted(result: JobResult, running: Sequence[RunningJob] | None) -> bool:
    """Whether the result claims success but GitHub reports a failed job.

    Any job can upload an artifact under another job's name.
    """
    if result.status not in (Status.PUBLISHED, Status.UNCHANGED):
        return False
    # Publishing never starts after quantizing failed; on the GPU runner it is a step of the same job.
    stages = ("quantize", "publish") if result.stage == "publish" else (result.stage,)
    seen = [_find_job(result.target, stage, running) for stage in stages]
    return any(item is not None and item.status == "completed" and item.conclusion != "success" for item in seen)


def _final_result(job: Job, results: Results, running: Sequence[RunningJob] | None) -> JobResult:
    stage = _last_stage(job, results, running)
    result, seen = results.get((job.job_id, stage)), _find_job(job.entry.target, stage, running)
    # A model that was quantized and then neither published nor refused was lost in between.
    if result is None or result.status is Status.READY:
        return _result_from_api(job, stage, seen, known=running is not None)
    # The runner's own words for these two are not trusted.
    return replace(result, repo_id=job.entry.repo_id, url=seen.url if seen is not None else "")


def _last_stage(job: Job, results: Results, running: Sequence[RunningJob] | None) -> str:
    """The stage that decides: `publish` only where there was something to publish."""
    if job.kind is not JobKind.RELEASE:
        return "refresh"
    if (job.job_id, "publish") in results:
        return "publish"
    quantized, publish_job = results.get((job.job_id, "quantize")), _find_job(job.entry.target, "publish", running)
    began = publish_job is not None and publish_job.conclusion != "skipped"
    if quantized is None:
        return "publish" if began else "quantize"
    is_ready, quantize_job = quantized.status is Status.READY, _find_job(job.entry.target, "quantize", running)
    failed = quantize_job is not None and quantize_job.conclusion not in (None, "success") and not began
    return "publish" if is_ready and not failed else "quantize"


def _find_job(target: str, stage: str, running: Sequence[RunningJob] | None) -> RunningJob | None:
    mine = [item for item in running or () if (item.stage, item.target) == (stage, target)]
    return mine[-1] if mine else None


def _result_from_api(job: Job, stage: str, seen: RunningJob | None, *, known: bool) -> JobResult:
    """The result of a job that left none."""
    if not known:
        message = "it left no result, and its state on GitHub is unknown"
        return job_result(job, stage=stage, status=Status.UNKNOWN, message=message)
    if seen is None or seen.status != "completed":
        return job_result(job, stage=stage, status=Status.STOPPED, message="it was not started")
    conclusion = _conclusion(job, stage, seen)
    if conclusion in ("cancelled", "skipped"):
        return job_result(job, stage=stage, status=Status.STOPPED, message=f"it was {conclusion}", url=seen.url)
    message, hint = _LOST.get(conclusion, _LOST["failure"])
    labels = runner_labels(job) if stage == "quantize" else (HOSTED_RUNNER,)
    message = message.format(labels=", ".join(labels))
    error = EnvironmentProblem(f"{job.entry.repo_id}: {stage}: {message}", hint=hint)
    return job_result(job, stage=stage, status=Status.FAILED, error=error, url=seen.url)


def _conclusion(job: Job, stage: str, seen: RunningJob) -> str:
    """GitHub's conclusion, but `not_taken` or `timed_out` for a `cancelled` job that no person cancelled."""
    if seen.conclusion != "cancelled" or seen.completed is None:
        return seen.conclusion or ""
    if not seen.runner:
        expired = seen.created is not None and seen.completed - seen.created > _LONG_IN_QUEUE
        return "not_taken" if expired else "cancelled"
    allowed = timedelta(minutes=job_minutes(job, stage))
    ran_out = seen.started is not None and seen.completed - seen.started > allowed - _TOLERANCE
    return "timed_out" if ran_out else "cancelled"


_LOST = {
    "failure": (
        "the runner was lost, or a step failed that is not part of awq-bot",
        "Read the job's log, and check the runner's machine: out of memory, out of disk, or switched off.",
    ),
    "timed_out": (
        "it took longer than the workflow allows",
        "The limit is four times the estimate, plus time to move the files. Does another process use the runner's"
        " GPU? Is its connection slow?",
    ),
    "not_taken": (
        "no runner with the labels {labels} took it within a day",
        "Is a runner connected that has all of these labels? With too few runners, lower AWQ_BOT_MOST_JOBS.",
    ),
    "success": (
        "the job succeeded and left no result",
        "Its artifact was not uploaded, or was deleted. Run the workflow again.",
    ),
}


Record = TypeVar("Record")

PLAN = "plan.json"
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,250}")  # valid as the name of an artifact and of a file
_MAX_RESULT_BYTES = 1_000_000
_MAX_RESULTS = 5_000


def store_plan(folder: Path, plan: Plan) -> None:
    """plan.json, and one file per job for the workflow job that runs it."""
    write_atomic(folder / PLAN, to_json(plan).encode())
    for job in plan.jobs:
        write_atomic(_file_of(folder, job.job_id), to_json(job).encode())


def originals_of(folder: Path, job_id: str) -> Path:
    """The folder with upstream's versions of the files that a job edits."""
    return folder / "originals" / job_id


def read_plan(folder: Path) -> Plan | None:
    """None when no plan was made."""
    return _read(Plan, folder / PLAN) if (folder / PLAN).exists() else None


def read_job(folder: Path, job_id: str) -> Job:
    """Raises WatchlistError when the plan has no such job."""
    path = _file_of(folder, job_id)
    job = _read(Job, path) if path.exists() else None
    if job is None or job.job_id != job_id:
        raise WatchlistError(
            f"{folder}: no job {job_id} in this plan", hint="Use a `job_id` from the plan's matrix."
        )
    return job


def store_result(folder: Path, result: JobResult) -> JobResult:
    """Write the result to its artifact folder, with tokens redacted. Returns what was written."""
    written = replace(result, message=redacted(result.message), hint=redacted(result.hint))
    write_atomic(_file_of(folder / _artifact_name(result), result.job_id), to_json(written).encode())
    return written


def attested(result: JobResult) -> dict[str, object]:
    """The outputs that actions/attest reads: name and digest of a new publication's provenance, else empty."""
    made = result.publication
    if made is None or not made.new or not made.provenance_sha256:
        return {"provenance": "", "provenance_digest": ""}
    return {
        "provenance": f"{made.repo_id}@{made.tag}/{PROVENANCE}",
        "provenance_digest": f"sha256:{made.provenance_sha256}",
    }


def read_results(folder: Path, plan: Plan) -> tuple[tuple[JobResult, ...], tuple[str, ...]]:
    """What the jobs wrote, and a line for each file that is rejected: untrusted files were loaded beside some.

    Each lies in the folder of its artifact, which is named for job and stage; other files are ignored.
    """
    jobs = {job.job_id: job for job in plan.jobs}
    results: list[JobResult] = []
    rejected: list[str] = []
    for path in sorted(folder.glob("result-*/**/*.json"))[:_MAX_RESULTS]:
        result = _result(path)
        name = path.relative_to(folder)
        if result is None:
            rejected.append(f"{name}: not a result")
        elif not is_plausible(result, jobs):
            rejected.append(f"{name}: not about a planned job, or not what that job can have done")
        elif name.parent != Path(_artifact_name(result)):
            rejected.append(f"{name}: uploaded by a different job")
        else:
            results.append(result)
    return tuple(results), tuple(rejected)


def _artifact_name(result: JobResult) -> str:
    """The artifact with a result, as the workflows name it."""
    return f"result-{result.stage}-{result.job_id}"


def _result(path: Path) -> JobResult | None:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_RESULT_BYTES:
        return None
    try:
        return from_json(JobResult, redacted(path.read_text(encoding="utf-8")))
    except ValueError:
        return None


def _file_of(folder: Path, job_id: str) -> Path:
    if not _JOB_ID.fullmatch(job_id):
        raise WatchlistError(f"{job_id!r} is not a valid job_id", hint="Use a `job_id` from the plan's matrix.")
    return folder / f"{job_id}.json"


def _read(kind: type[Record], path: Path) -> Record:
    try:
        return from_json(kind, path.read_bytes())
    except (OSError, ValueError):
        hint = "It may be from another version. Plan again."
        raise EnvironmentProblem(f"{path}: cannot be read as a {kind.__name__}", hint=hint) from None
