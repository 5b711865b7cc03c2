"""Decisions -> Plan: in which order, and how many at once."""

from __future__ import annotations

from collections.abc import Sequence

from bot.records import Job, JobKind, Plan, Skip

# What is nearly done comes first: it costs no GPU and leaves nothing half-published.
_ORDER = {JobKind.FINISH: 0, JobKind.REFRESH: 1, JobKind.RELEASE: 2}


def make_plan(decisions: Sequence[Job | Skip], *, max_jobs: int | None = None) -> Plan:
    """Finish, then refresh, then releases by priority; the smaller first among equals.

    max_jobs: the rest is deferred to the next run. No limit if None.
    """
    jobs = sorted((item for item in decisions if isinstance(item, Job)), key=_urgency)
    skipped = tuple(item for item in decisions if isinstance(item, Skip))
    cap = len(jobs) if max_jobs is None else max(0, max_jobs)
    return Plan(jobs=tuple(jobs[:cap]), skipped=skipped, deferred=tuple(jobs[cap:]))


def _urgency(job: Job) -> tuple[int, int, int, int]:
    download_bytes = job.estimate.download_bytes if job.estimate else 0
    return _ORDER[job.kind], -job.entry.priority, download_bytes, job.entry.line
