"""The folders that the jobs of a workflow pass on: the plan, and what each leg wrote about its end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

from bot.errors import EnvironmentProblem, WatchlistError
from bot.github.environment import redacted
from bot.jobdir import write_atomically
from bot.records import Job, JobResult, Plan, from_json, to_json
from bot.watch.endings import believable

Record = TypeVar("Record")

PLAN = "plan.json"
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,250}")  # what can be the name of an artifact, and of a file
_MOST_RESULT_BYTES = 1_000_000
_MOST_RESULTS = 5_000


def store_plan(folder: Path, plan: Plan) -> None:
    """plan.json, and one file per job that a leg reads."""
    _write(folder / PLAN, to_json(plan))
    for job in plan.jobs:
        _write(_file_of(folder, job.job_id), to_json(job))


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
    _write(_file_of(folder / _result_name(result), result.job_id), to_json(result))


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


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise EnvironmentProblem(f"{path}: cannot write: {error.strerror}", hint="Is the disk full?") from None
