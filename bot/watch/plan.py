"""Decisions -> Plan: in which order, how many at once, and the matrix that GitHub Actions runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bot.records import Job, JobKind, Plan, Skip

MATRIX_LIMIT = 256  # jobs that one matrix of GitHub Actions may hold
HOSTED_RUNNER = "ubuntu-latest"  # what needs no GPU

# What is nearly done comes first: it costs no GPU and leaves nothing half-published.
_ORDER = {JobKind.FINISH: 0, JobKind.REFRESH: 1, JobKind.RELEASE: 2}


def make_plan(decisions: Sequence[Job | Skip], *, max_jobs: int = MATRIX_LIMIT) -> Plan:
    """Finish, then refresh, then releases by priority; the smaller first among equals.

    max_jobs: never more than a matrix holds; the rest is deferred to the next run.
    """
    cap = max(0, min(max_jobs, MATRIX_LIMIT))
    jobs = sorted((item for item in decisions if isinstance(item, Job)), key=_urgency)
    skipped = tuple(item for item in decisions if isinstance(item, Skip))
    return Plan(jobs=tuple(jobs[:cap]), skipped=skipped, deferred=tuple(jobs[cap:]))


def _urgency(job: Job) -> tuple[int, int, int, int]:
    size = job.estimate.download_bytes if job.estimate else 0
    return _ORDER[job.kind], -job.entry.priority, size, job.entry.line


def matrix(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """The `strategy.matrix` of the workflow: names, labels and limits. The jobs themselves are in the plan."""
    return {"include": [matrix_row(job) for job in plan.jobs]}


def matrices(plan: Plan, *, publish_on: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of the workflow's two matrices: what needs a GPU, and what does not."""
    rows: dict[str, list[dict[str, Any]]] = {"quantize": [], "refresh": []}
    for job in plan.jobs:
        name = "quantize" if job.kind is JobKind.RELEASE else "refresh"
        rows[name].append(matrix_row(job) | {"publish_on": publish_on})
    return rows


def matrix_row(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "kind": job.kind.value,
        "repo_id": job.entry.repo_id,
        "target": job.entry.target,
        "runs_on": list(job.runner_labels) or [HOSTED_RUNNER],
        "timeout_minutes": timeout_minutes(job),
    }


def timeout_minutes(job: Job) -> int:
    """Four times the estimate, at least half an hour; a self-hosted job may run five days at most."""
    duration_s = job.estimate.duration_s if job.estimate else 0.0
    return min(max(30, round(4 * duration_s / 60)), 5 * 24 * 60)
