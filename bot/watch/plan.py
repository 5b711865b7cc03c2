"""Decisions -> Plan: in which order, how many at once, and the matrix that GitHub Actions runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bot.errors import EnvironmentProblem
from bot.records import Job, JobKind, Plan, Skip
from bot.text import size

MATRIX_LIMIT = 256  # jobs that one matrix of GitHub Actions may hold
HOSTED_RUNNER = "ubuntu-latest"  # what needs no GPU

# A machine of GitHub's has 14 GB of disk at the least, for the artifact and all that publishes it.
HOSTED_ARTIFACT_BYTES = 12 * 10**9

# How long GitHub lets a job run, in minutes: on its own machines, and on ours.
HOSTED_LIMIT = 6 * 60
SELF_HOSTED_LIMIT = 5 * 24 * 60
PUBLISH_MINUTES = 350  # of model.yml's `publish`, which waits for no estimate

_BYTES_PER_S = 25e6  # of a plain line, and of a disk that others use too
_SPARE_S = 30 * 60.0  # to install the bot, to wait for the Hub, to start and to clean up

# What is nearly done comes first: it costs no GPU and leaves nothing half-published.
_ORDER = {JobKind.FINISH: 0, JobKind.REFRESH: 1, JobKind.RELEASE: 2}


def make_plan(
    decisions: Sequence[Job | Skip], *, max_jobs: int = MATRIX_LIMIT, max_releases: int = MATRIX_LIMIT
) -> Plan:
    """Finish, then refresh, then releases by priority; the smaller first among equals.

    max_jobs: never more than a matrix holds. max_releases: of them, those that wait for a GPU, and come last. The
    rest is deferred to the next run.
    """
    small = sum(isinstance(item, Job) and item.kind is not JobKind.RELEASE for item in decisions)
    cap = min(max(0, max_jobs), MATRIX_LIMIT, small + max(0, max_releases))
    jobs = sorted((item for item in decisions if isinstance(item, Job)), key=_urgency)
    skipped = tuple(item for item in decisions if isinstance(item, Skip))
    return Plan(jobs=tuple(jobs[:cap]), skipped=skipped, deferred=tuple(jobs[cap:]))


def publishable(plan: Plan, *, hosted: bool, public: bool) -> Plan:
    """The plan without releases that cannot be handed on to where they would be published.

    hosted: that is a machine of GitHub's. public: whatever jobs hand on, everybody can fetch.
    """
    if not hosted:
        return plan
    found = ((job, _too_large(job) or (_closed(job) if public else None)) for job in (*plan.jobs, *plan.deferred))
    refused = {job.job_id: skip for job, skip in found if skip is not None}
    return replace(
        plan,
        jobs=tuple(job for job in plan.jobs if job.job_id not in refused),
        deferred=tuple(job for job in plan.deferred if job.job_id not in refused),
        skipped=(*refused.values(), *plan.skipped),
    )


def _too_large(job: Job) -> Skip | None:
    output_bytes = job.estimate.output_bytes if job.estimate else 0
    if job.kind is not JobKind.RELEASE or output_bytes <= HOSTED_ARTIFACT_BYTES:
        return None
    room = f"about {size(output_bytes)} to publish, room for {size(HOSTED_ARTIFACT_BYTES)}"
    hint = "Set AWQ_BOT_PUBLISH_ON to `runner`: it is published from the GPU machine then."
    return Skip(
        entry=job.entry,
        reason=f"too large for a hosted machine: {room}",
        hint=hint,
        blocked=True,
        exit_code=EnvironmentProblem.exit_code,
    )


def _closed(job: Job) -> Skip | None:
    if job.kind is not JobKind.RELEASE or not (job.upstream.gated or job.upstream.private or job.entry.private):
        return None
    what = "gated" if job.upstream.gated else "private"
    return Skip(
        entry=job.entry,
        reason=f"it is {what}, and this repository is public: anybody could fetch what its jobs hand on",
        hint="Watch it from a private repository, or set AWQ_BOT_PUBLISH_ON to runner.",
        blocked=True,
        exit_code=EnvironmentProblem.exit_code,
    )


def _urgency(job: Job) -> tuple[int, int, int, int]:
    download_bytes = job.estimate.download_bytes if job.estimate else 0
    return _ORDER[job.kind], -job.entry.priority, download_bytes, job.entry.line


def matrices(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """The rows of the workflow's two matrices: what needs a GPU, and what does not."""
    rows: dict[str, list[dict[str, Any]]] = {"quantize": [], "refresh": []}
    for job in plan.jobs:
        name = "quantize" if job.kind is JobKind.RELEASE else "refresh"
        rows[name].append(matrix_row(job))
    return rows


def matrix_row(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "target": job.entry.target,
        "runs_on": list(job.runner_labels) or [HOSTED_RUNNER],
        "timeout_minutes": timeout_minutes(job),
    }


def timeout_minutes(job: Job) -> int:
    """Four times the estimate of the work, time to move files, and half an hour; never beyond GitHub's limits.

    Source and artifact are each moved three times: from the line, to be hashed, and to be read, packed up or sent.
    """
    needs = job.estimate
    if needs is not None:
        work_s, moved_bytes, limit = needs.duration_s, needs.download_bytes + needs.output_bytes, SELF_HOSTED_LIMIT
    else:
        # What was published is read back. It is smaller than what it was made of, whose size is known.
        work_s, moved_bytes, limit = 0.0, sum(file.size_bytes for file in job.source_files), HOSTED_LIMIT
    return min(math.ceil((4 * work_s + 3 * moved_bytes / _BYTES_PER_S + _SPARE_S) / 60), limit)


def leg_minutes(job: Job, stage: str) -> int:
    """How long the workflow lets one leg of a job run."""
    return PUBLISH_MINUTES if stage == "publish" else timeout_minutes(job)
